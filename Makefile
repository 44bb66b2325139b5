# What can be done here; `make` alone says so. Variables: PREFIX, DESTDIR, CARGO, CARGO_TARGET_DIR, BENCH.

PREFIX ?= /usr/local
CARGO ?= cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)
export PATH := $(PATH):$(HOME)/.cargo/bin

.PHONY: help build demo test soak fuzz bench man install uninstall pages stage deb package-check deb-check verity-check static \
	clean needs

help:
	@echo 'make demo      build peelfs and see it work on a sample image (no registry or network needed)'
	@echo 'make test      install what the tests need, then run all of them'
	@echo 'make soak      run the long forms of tests: kills, crashes, damage, many readers; a line for each'
	@echo 'make build     build $(TARGET)/release/peelfs'
	@echo 'make install   install the program, manual pages, completions, helpers of mount(8), units; PREFIX is $(PREFIX)'
	@echo 'make uninstall remove all of that'
	@echo 'make deb       make a Debian package of it; `make deb-check` tries it in a fresh Debian'
	@echo 'make verity-check  see kernel mounts with fs-verity work, in a virtual machine (QEMU)'
	@echo 'make static    build a program that needs no shared library'
	@echo 'make bench     measure beside other tools and draw charts'
	@echo 'make fuzz      fuzz each target for FUZZ_SECONDS (needs a nightly toolchain and cargo-fuzz)'
	@echo 'make clean     remove what was built'

# A compiler, FUSE and Rust; installed with apt where they are missing.
needs:
	@scripts/need.sh cc:gcc make:make fusermount3:fuse3 rust

# Both programs are built by the same words, so that nothing is built twice.
build: needs
	$(CARGO) build --release --locked -p peelfs-cli -p peelfs-loopback --bins

demo: needs
	@$(CARGO) build --release --locked -p peelfs-cli -p peelfs-loopback --bins
	@$(TARGET)/release/peelfs-demo

# Tests build one, where there are such programs.
PROGRAMS_OF_32_BITS := $(if $(filter x86_64,$(shell uname -m)),/usr/lib32/crt1.o:gcc-multilib)

# Clippy's driver is a compiler: the build of the tests is linted, and nothing is compiled a second time for that.
LINTED := RUSTC_WORKSPACE_WRAPPER=clippy-driver CLIPPY_ARGS=-Dwarnings

# Most tests wait for something: more of them than CPUs run at a time.
export RUST_TEST_THREADS ?= $(shell echo $$((2 * $$(nproc))))

# What tests run: the real engines and tools.
TEST_TOOLS := umoci:umoci skopeo:skopeo openssl:openssl \
	docker-registry:docker-registry getfattr:attr mkfs.ext4:e2fsprogs python3:python3 faketime:faketime cpio:cpio git:git \
	restic:restic borg:borgbackup mkfs.erofs:erofs-utils runc:runc crun:crun busybox:busybox \
		chromium:chromium chromedriver:chromium-driver \
	containerd:containerd ctr-remote:stargz-snapshotter podman:podman buildah:buildah fish:fish zsh:zsh \
	cargo-deb xz:xz-utils $(PROGRAMS_OF_32_BITS)

# The tools are installed while the tests are built.
test:
	@scripts/need.sh cc:gcc make:make fusermount3:fuse3 rust rustfmt clippy
	$(CARGO) fmt --all --check
	@scripts/both.sh \
		'$(LINTED) $(CARGO) test --locked --workspace --all-targets --no-run' \
		'scripts/need.sh $(TEST_TOOLS)'
	$(LINTED) $(CARGO) test --locked --workspace
	@$(MAKE) --no-print-directory package-check

# The package, of the program that the tests have built, installed on this machine and purged again, without a trace.
package-check:
	@scripts/need.sh cargo-deb xz:xz-utils
	@$(MAKE) -s stage PROGRAM='$(TARGET)/debug/peelfs'
	$(CARGO) deb --quiet --no-build --no-strip -p peelfs-cli --fast --compress-system -o $(DEB)
	scripts/deb_check.sh $(DEB)

FUZZ_SECONDS ?= 60
FUZZ_TARGETS := tar index gzip zstd checkpoint documents pushed reference platform wire toc estargz ztoc
fuzz:
	$(CARGO) run --quiet --locked -p peelfs-bench-tools --bin fuzz_seeds
	@set -e; for target in $(FUZZ_TARGETS); do \
		echo "== $$target"; \
		$(CARGO) +nightly fuzz run $$target -- -max_total_time=$(FUZZ_SECONDS) -max_len=65536 \
			-rss_limit_mb=2048 -timeout=20 -print_final_stats=1; \
	done

# The long forms of tests that have a short one in `make test`. SOAK names some of the runs, as in
# SOAK='readers two-processes' PEELFS_SOAK_SECONDS=120.
SOAK ?=
soak: needs
	@CARGO='$(CARGO)' scripts/soak.sh $(SOAK)

# Needs root. BENCH holds options of benches/run.sh, as in BENCH='--runs 1 --only warm'.
BENCH ?=
bench: needs
	@scripts/need.sh podman:podman skopeo:skopeo umoci:umoci docker-registry:docker-registry curl:curl jq:jq \
		python3:python3 pip3:python3-pip setfattr:attr gnuplot:gnuplot-nox mmdebstrap:mmdebstrap npm:npm \
		containerd:containerd ctr-remote:stargz-snapshotter runc:runc
	benches/run.sh $(BENCH)

# The program that is installed.
PROGRAM ?= $(TARGET)/release/peelfs

# Manual pages and completions: the program writes them.
man: build pages
pages:
	@mkdir -p $(TARGET)/man $(TARGET)/completions
	$(PROGRAM) man $(TARGET)/man
	@set -e; for shell in bash zsh fish; do $(PROGRAM) completions $$shell > $(TARGET)/completions/$$shell; done

# mount(8) looks for helpers in MOUNT_HELPERS, whatever PREFIX is; where that is PREFIX/sbin, there are no links. A user
# who may not write there has all but `mount -t peelfs`.
MOUNT_HELPERS ?= /sbin
HELPER := $(PREFIX)/sbin/mount.peelfs
# Where shells and systemd look.
BASH_COMPLETION ?= $(PREFIX)/share/bash-completion/completions/peelfs
ZSH_COMPLETION ?= $(PREFIX)/share/zsh/site-functions/_peelfs
FISH_COMPLETION ?= $(PREFIX)/share/fish/vendor_completions.d/peelfs.fish
UNITS ?= $(PREFIX)/lib/systemd/system
UNIT_FILES := peelfs-snapshotter.service peelfs-snapshotter.socket
install: man
	install -D -m 755 $(PROGRAM) $(DESTDIR)$(PREFIX)/bin/peelfs
	install -d $(DESTDIR)$(PREFIX)/share/man/man1
	install -m 644 $(TARGET)/man/*.1 $(DESTDIR)$(PREFIX)/share/man/man1
	install -D -m 644 $(TARGET)/completions/bash $(DESTDIR)$(BASH_COMPLETION)
	install -D -m 644 $(TARGET)/completions/zsh $(DESTDIR)$(ZSH_COMPLETION)
	install -D -m 644 $(TARGET)/completions/fish $(DESTDIR)$(FISH_COMPLETION)
	install -d $(DESTDIR)$(UNITS)
	install -m 644 $(UNIT_FILES:%=deploy/containerd/%) $(DESTDIR)$(UNITS)
	install -d $(DESTDIR)$(PREFIX)/sbin
	sed 's|^bin=[^ ]*|bin=$(PREFIX)/bin|' scripts/mount.peelfs > $(DESTDIR)$(HELPER)
	chmod 755 $(DESTDIR)$(HELPER)
	ln -sf mount.peelfs $(DESTDIR)$(PREFIX)/sbin/mount.fuse.peelfs
	@if [ '$(PREFIX)/sbin' -ef '$(MOUNT_HELPERS)' ]; then :; \
	elif install -d '$(DESTDIR)$(MOUNT_HELPERS)' 2> /dev/null && [ -w '$(DESTDIR)$(MOUNT_HELPERS)' ]; then \
		for name in mount.peelfs mount.fuse.peelfs; do \
			echo "ln -sf $(HELPER) $(DESTDIR)$(MOUNT_HELPERS)/$$name"; \
			ln -sf '$(HELPER)' "$(DESTDIR)$(MOUNT_HELPERS)/$$name"; \
		done; \
	else \
		echo 'note: mount -t peelfs needs $(MOUNT_HELPERS)/mount.peelfs, which only root can make:'; \
		echo '  ln -s $(HELPER) $(MOUNT_HELPERS)/mount.peelfs'; \
	fi

uninstall:
	rm -f $(DESTDIR)$(PREFIX)/bin/peelfs $(DESTDIR)$(PREFIX)/share/man/man1/peelfs.1 \
		$(DESTDIR)$(PREFIX)/share/man/man1/peelfs-*.1 $(DESTDIR)$(HELPER) $(DESTDIR)$(PREFIX)/sbin/mount.fuse.peelfs \
		$(DESTDIR)$(BASH_COMPLETION) $(DESTDIR)$(ZSH_COMPLETION) $(DESTDIR)$(FISH_COMPLETION) \
		$(UNIT_FILES:%=$(DESTDIR)$(UNITS)/%)
	@for name in mount.peelfs mount.fuse.peelfs; do \
		link='$(DESTDIR)$(MOUNT_HELPERS)'/$$name; \
		if [ "$$(readlink "$$link")" = '$(HELPER)' ]; then echo "rm -f $$link"; rm -f "$$link"; fi; \
	done

# What the package has, in a directory: the same that `make install` installs, where Debian has it. Since Debian 12, /sbin
# is /usr/sbin.
STAGE := $(TARGET)/release/stage
DEB := $(TARGET)/debian/peelfs.deb
DEBIAN := PREFIX=/usr MOUNT_HELPERS=/usr/sbin ZSH_COMPLETION=/usr/share/zsh/vendor-completions/_peelfs
stage: pages
	rm -rf $(STAGE)
	$(MAKE) -o man install DESTDIR='$(abspath $(STAGE))' $(DEBIAN) PROGRAM='$(PROGRAM)'
	install -D -m 644 CHANGELOG.md $(STAGE)/usr/share/doc/peelfs/CHANGELOG.md
	gzip -9nf $(STAGE)/usr/share/doc/peelfs/CHANGELOG.md $(STAGE)/usr/share/man/man1/*.1

deb: build
	@scripts/need.sh cargo-deb xz:xz-utils
	$(MAKE) stage
	$(CARGO) deb --no-build --no-strip -p peelfs-cli --compress-system -o $(DEB)

deb-check: deb
	@scripts/need.sh mmdebstrap:mmdebstrap
	scripts/deb_check.sh --clean $(DEB)

# Of the program that `make build` makes; VERITY_CHECK_KERNEL names a package with another kernel than Debian's newest.
verity-check: build
	scripts/verity_check.sh $(TARGET)/release/peelfs

# Without musl: glibc's own resolver is in it, and it takes no other.
STATIC_TARGET ?= $(shell uname -m)-unknown-linux-gnu
static: needs
	@scripts/need.sh ip:iproute2 python3:python3
	RUSTFLAGS='-C target-feature=+crt-static' $(CARGO) build --release --locked -p peelfs-cli --target $(STATIC_TARGET)
	scripts/static_check.sh $(TARGET)/$(STATIC_TARGET)/release/peelfs

clean:
	$(CARGO) clean
	rm -rf fuzz/target fuzz/corpus fuzz/artifacts
