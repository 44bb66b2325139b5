//! `peelfs version`: of which commit the program is, how it was built, what of the kernel it uses.

use std::io::Write as _;

use serde::Serialize;

use super::text;
use peelfs::host::report::Report;

/// `peelfs version`
#[derive(Debug, clap::Args)]
pub(crate) struct VersionArgs {
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Serialize)]
struct Version {
    schema: u32,
    version: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    commit: Option<&'static str>,
    target: &'static str,
    profile: &'static str,
    /// Whether the program needs no shared library.
    r#static: bool,
    features: [&'static str; 11],
    kernel: [KernelFeature; 5],
}

/// A feature of the kernel that is used where it is there.
#[derive(Serialize)]
struct KernelFeature {
    name: &'static str,
    /// The first release that has it.
    since: &'static str,
    /// What for.
    r#for: &'static str,
}

pub(super) fn run(args: &VersionArgs) -> Result<(), Report> {
    let version = Version {
        schema: 1,
        version: env!("CARGO_PKG_VERSION"),
        commit: Some(env!("PEELFS_COMMIT")).filter(|commit| !commit.is_empty()),
        target: env!("PEELFS_TARGET"),
        profile: env!("PEELFS_PROFILE"),
        r#static: cfg!(target_feature = "crt-static"),
        features: FEATURES,
        kernel: KERNEL,
    };
    let mut shown = if args.json { serde_json::to_string(&version).expect("plain data") } else { version.text() };
    shown.push('\n');
    std::io::stdout().lock().write_all(shown.as_bytes()).or_else(|error| text::output_ended(&error))
}

impl Version {
    fn text(&self) -> String {
        let linked = if self.r#static { "static" } else { "dynamic" };
        let mut lines = vec![
            format!("peelfs {}", self.version),
            format!("  commit    {}", self.commit.unwrap_or("unknown")),
            format!("  built     for {}, {}, {linked}", self.target, self.profile),
            format!("  features  {}", self.features.join(", ")),
        ];
        for (number, KernelFeature { name, since, r#for }) in self.kernel.iter().enumerate() {
            let what = if number == 0 { "kernel" } else { "" };
            lines.push(format!("  {what:<8}  {name} (Linux {since}): {for}"));
        }
        lines.join("\n")
    }
}

/// Transports of images, compressions and indexes of layers, and services.
const FEATURES: [&str; 11] = [
    "registry",
    "oci",
    "docker-archive",
    "containers-storage",
    "docker-daemon",
    "gzip",
    "zstd",
    "zstd:chunked",
    "estargz",
    "snapshotter",
    "csi",
];

const KERNEL: [KernelFeature; 5] = [
    KernelFeature { name: "overlayfs in user namespaces", since: "5.11", r#for: "run, for users other than root" },
    KernelFeature { name: "FUSE resend", since: "6.9", r#for: "mounts that outlive their process" },
    KernelFeature { name: "FUSE passthrough", since: "6.9", r#for: "--passthrough" },
    KernelFeature { name: "FUSE idmapped mounts", since: "6.12", r#for: "owners mapped by engines" },
    KernelFeature { name: "EROFS from files", since: "6.12", r#for: "--kernel" },
];
