//! Platforms: which of an image's variants can run here, and which of them runs best.
//!
//! Builders spell platforms in many ways (`x86_64`, `amd64`, `arm64/v8`), and a processor runs more than
//! its own kind. Choosing by string comparison picks nothing where something fits, or the slow variant
//! where a fast one is offered. The spelling and the order are containerd's (its `platforms` package:
//! `Normalize` and `Only`), so that an image mounts as the variant it would run as.

use std::fmt;
use std::str::FromStr;

/// An operating system and processor, spelt as Go spells them (image-spec, image-index.md, `platform`).
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Platform {
    os: Box<str>,
    architecture: Box<str>,
    variant: Option<Box<str>>,
    os_version: Option<Box<str>>,
    os_features: Vec<Box<str>>,
}

impl Platform {
    /// A platform in the one spelling that is compared.
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let os = match os.to_ascii_lowercase().as_str() {
            "macos" => "darwin".into(),
            os => os.into(),
        };
        let (architecture, variant) = normal_architecture(architecture, variant.unwrap_or_default());
        let variant = (!variant.is_empty()).then(|| variant.into());
        Self { os, architecture: architecture.into(), variant, os_version: None, os_features: Vec::new() }
    }

    /// The same platform with `os.version` and `os.features`; an empty version says nothing.
    pub fn with_os(mut self, version: Option<&str>, features: &[String]) -> Self {
        self.os_version = version.filter(|version| !version.is_empty()).map(Into::into);
        self.os_features = features.iter().map(|feature| feature.as_str().into()).collect();
        self
    }

    /// The platform this program runs on, as finely as can be told at run time.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            "powerpc64" => "ppc64",
            "loongarch64" => "loong64",
            "x86" => "386",
            "mips" if cfg!(target_endian = "little") => "mipsle",
            "mips64" if cfg!(target_endian = "little") => "mips64le",
            other => other,
        };
        Self::new(std::env::consts::OS, architecture, host_variant())
    }

    /// The operating system, as in `linux`.
    pub fn os(&self) -> &str {
        &self.os
    }

    /// The processor, as in `amd64`.
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// The variant of the processor, as in `v7`; none for the most common one.
    pub fn variant(&self) -> Option<&str> {
        self.variant.as_deref()
    }

    /// The version of the operating system, as Windows images have it.
    pub fn os_version(&self) -> Option<&str> {
        self.os_version.as_deref()
    }

    /// Whether something built for `offered` runs on this platform.
    pub fn runs(&self, offered: &Self) -> bool {
        rank(&self.runnable(), self, offered).is_some()
    }

    /// `unknown/unknown`, which is how builders mark what is not an image.
    pub fn is_unknown(&self) -> bool {
        &*self.os == "unknown" && &*self.architecture == "unknown"
    }

    /// The architectures and variants that run here, best first.
    fn runnable(&self) -> Vec<(&str, String)> {
        let variant = self.variant().unwrap_or_default();
        let mut all = Vec::new();
        match &*self.architecture {
            "amd64" => {
                let newest = variant.strip_prefix('v').and_then(|n| n.parse().ok()).unwrap_or(1_u8).min(AMD64_NEWEST);
                all.extend((2..=newest).rev().map(|n| ("amd64", format!("v{n}"))));
                all.push(("amd64", String::new()));
                all.push(("386", String::new()));
            }
            "arm" => all.extend(arm_variants(variant)),
            "arm64" => {
                all.extend(arm64_variants(variant));
                all.extend(arm_variants("v8"));
            }
            other => all.push((other, variant.to_owned())),
        }
        if !all.iter().any(|(arch, known)| *arch == &*self.architecture && known == variant) {
            all.insert(0, (&self.architecture, variant.to_owned()));
        }
        all
    }
}

/// The position in `offered` of what runs best on `wanted`; the first of equals.
pub fn choose(wanted: &Platform, offered: &[Platform]) -> Option<usize> {
    best_first(wanted, offered).first().copied()
}

/// The positions in `offered` of all that runs on `wanted`, best first, equals in their order.
pub fn best_first(wanted: &Platform, offered: &[Platform]) -> Vec<usize> {
    let runnable = wanted.runnable();
    let mut fitting: Vec<_> = offered
        .iter()
        .enumerate()
        .filter_map(|(at, platform)| Some((rank(&runnable, wanted, platform)?, at)))
        .collect();
    fitting.sort_unstable();
    fitting.into_iter().map(|(_, at)| at).collect()
}

/// How well `offered` fits: first by processor, then by whether the version is the very same.
fn rank(runnable: &[(&str, String)], wanted: &Platform, offered: &Platform) -> Option<(usize, bool)> {
    if offered.os != wanted.os || !features_fit(wanted, offered) {
        return None;
    }
    if let (Some(ours), Some(theirs)) = (wanted.os_version(), offered.os_version())
        && !versions_fit(ours, theirs)
    {
        return None;
    }
    let variant = offered.variant().unwrap_or_default();
    let at = runnable.iter().position(|(arch, known)| *arch == &*offered.architecture && known == variant)?;
    Some((at, wanted.os_version != offered.os_version))
}

/// Windows: an image runs on the build it was made for, whatever the revision (`10.0.17763.*`).
fn versions_fit(ours: &str, theirs: &str) -> bool {
    let build = |version| str::split(version, '.').take(3).collect::<Vec<_>>();
    let (ours, theirs) = (build(ours), build(theirs));
    theirs.starts_with(&ours)
}

/// Features are demands. Windows' `win32k` is one on the kernel that runs the image and none on us.
fn features_fit(wanted: &Platform, offered: &Platform) -> bool {
    &*offered.os == "windows" || offered.os_features.iter().all(|feature| wanted.os_features.contains(feature))
}

fn arm_variants(variant: &str) -> Vec<(&'static str, String)> {
    let newest = variant.strip_prefix('v').and_then(|n| n.parse().ok()).unwrap_or(7_u8).min(ARM_NEWEST);
    (5..=newest).rev().map(|n| ("arm", format!("v{n}"))).collect()
}

/// v9.N runs v8.(N+5) (Arm ARM, "Armv9 architecture extensions"); v8.0 is spelt without a variant.
fn arm64_variants(variant: &str) -> Vec<(&'static str, String)> {
    let (major, minor) = match variant.strip_prefix('v').unwrap_or("8").split_once('.') {
        Some((major, minor)) => (major, minor.parse().unwrap_or(0_u8).min(ARM64_NEWEST_MINOR)),
        None => (variant.strip_prefix('v').unwrap_or("8"), 0),
    };
    let spell = |major: &str, minor: u8| match (major, minor) {
        ("8", 0) => String::new(),
        (major, 0) => format!("v{major}"),
        (major, minor) => format!("v{major}.{minor}"),
    };
    let mut all = Vec::new();
    let newest_v8 = if major == "9" {
        all.extend((0..=minor).rev().map(|minor| ("arm64", spell("9", minor))));
        (minor + 5).min(ARM64_NEWEST_MINOR)
    } else {
        minor
    };
    all.extend((0..=newest_v8).rev().map(|minor| ("arm64", spell("8", minor))));
    all
}

fn normal_architecture(architecture: &str, variant: &str) -> (String, String) {
    let architecture = architecture.to_ascii_lowercase();
    let variant = variant.to_ascii_lowercase();
    let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
        ("i386" | "i486" | "i586" | "i686" | "x86" | "386", _) => ("386", ""),
        ("x86_64" | "x86-64" | "amd64", "v1" | "") => ("amd64", ""),
        ("x86_64" | "x86-64" | "amd64", variant) => ("amd64", variant),
        ("aarch64" | "arm64", "8" | "v8" | "v8.0" | "") => ("arm64", ""),
        ("aarch64" | "arm64", "9" | "9.0" | "v9.0") => ("arm64", "v9"),
        ("aarch64" | "arm64", variant) => ("arm64", variant),
        ("armhf", _) => ("arm", "v7"),
        ("armel", _) => ("arm", "v6"),
        ("arm", "" | "7") => ("arm", "v7"),
        ("arm", number @ ("5" | "6" | "8")) => return ("arm".into(), format!("v{number}")),
        (architecture, variant) => (architecture, variant),
    };
    (architecture.to_owned(), variant.to_owned())
}

#[cfg(target_arch = "x86_64")]
fn host_variant() -> Option<&'static str> {
    use std::arch::is_x86_feature_detected as has;
    let v2 = has!("cmpxchg16b") && has!("popcnt") && has!("sse3") && has!("ssse3") && has!("sse4.1") && has!("sse4.2");
    let v3 = has!("avx") && has!("avx2") && has!("bmi1") && has!("bmi2") && has!("f16c") && has!("fma");
    let v3 = v3 && has!("lzcnt") && has!("movbe");
    let v4 = has!("avx512f") && has!("avx512bw") && has!("avx512cd") && has!("avx512dq") && has!("avx512vl");
    match (v2, v2 && v3, v2 && v3 && v4) {
        (_, _, true) => Some("v4"),
        (_, true, _) => Some("v3"),
        (true, _, _) => Some("v2"),
        _ => None,
    }
}

#[cfg(target_arch = "arm")]
fn host_variant() -> Option<&'static str> {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    arm_variant_of(&cpuinfo)
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "arm")))]
fn host_variant() -> Option<&'static str> {
    None
}

/// The variant that a 32-bit ARM's `/proc/cpuinfo` tells.
#[cfg_attr(not(target_arch = "arm"), allow(dead_code))]
fn arm_variant_of(cpuinfo: &str) -> Option<&'static str> {
    let field = |wanted: &str| {
        cpuinfo.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.trim().eq_ignore_ascii_case(wanted).then(|| value.trim().to_ascii_lowercase())
        })
    };
    let number: String = field("CPU architecture")?.chars().take_while(char::is_ascii_digit).collect();
    match number.as_str() {
        // The kernel says 7 for the ARMv6 of the first Raspberry Pi; its model name knows better.
        "7" if field("model name").is_some_and(|model| model.starts_with("armv6-compatible")) => Some("v6"),
        "5" => Some("v5"),
        "6" => Some("v6"),
        "7" => Some("v7"),
        "8" => Some("v8"),
        _ => None,
    }
}

impl fmt::Display for Platform {
    /// As it is typed: `linux/arm/v7`, `windows(10.0.17763)/amd64`. What came from outside is escaped.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |text: &str| text.chars().take(64).flat_map(char::escape_debug).collect::<String>();
        f.write_str(&shown(&self.os))?;
        if let Some(version) = &self.os_version {
            write!(f, "({})", shown(version))?;
        }
        write!(f, "/{}", shown(&self.architecture))?;
        if let Some(variant) = &self.variant {
            write!(f, "/{}", shown(variant))?;
        }
        Ok(())
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    /// Reads `OS/ARCHITECTURE[/VARIANT]`, with `OS(VERSION)` if wanted, or one of the two words alone.
    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let bad = |why| PlatformError { text: text.chars().take(80).collect(), why };
        if text.len() > 256 {
            return Err(bad(Why::Characters));
        }
        let mut words = text.split('/');
        let first = words.next().unwrap_or_default();
        let (os, version) = match first.strip_suffix(')').and_then(|rest| rest.split_once('(')) {
            Some((os, version)) => (os, Some(version)),
            None => (first, None),
        };
        let rest: Vec<_> = words.collect();
        if [os].iter().chain(version.iter()).chain(&rest).any(|word| !is_word(word)) {
            return Err(bad(Why::Characters));
        }
        let platform = match rest[..] {
            [] if KNOWN_OS.contains(&os.to_ascii_lowercase().as_str()) => {
                let host = Self::host();
                Self::new(os, host.architecture(), host.variant())
            }
            [] if version.is_none() && KNOWN_ARCHITECTURES.contains(&Self::new("linux", os, None).architecture()) => {
                Self::new(std::env::consts::OS, os, None)
            }
            [] => return Err(bad(Why::Word)),
            [architecture] => Self::new(os, architecture, None),
            [architecture, variant] => Self::new(os, architecture, Some(variant)),
            _ => return Err(bad(Why::Parts)),
        };
        Ok(platform.with_os(version, &[]))
    }
}

fn is_word(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

const AMD64_NEWEST: u8 = 4;
const ARM_NEWEST: u8 = 8;
const ARM64_NEWEST_MINOR: u8 = 9;
const KNOWN_OS: &[&str] = &[
    "aix",
    "android",
    "darwin",
    "dragonfly",
    "freebsd",
    "illumos",
    "js",
    "linux",
    "macos",
    "netbsd",
    "openbsd",
    "plan9",
    "solaris",
    "wasip1",
    "windows",
];
const KNOWN_ARCHITECTURES: &[&str] = &[
    "386", "amd64", "arm", "arm64", "loong64", "mips", "mips64", "mips64le", "mipsle", "ppc64", "ppc64le", "riscv64",
    "s390x", "wasm",
];

/// A string that names no platform.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{}` is not a platform: {why}", text.escape_debug())]
pub struct PlatformError {
    text: String,
    why: Why,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
enum Why {
    #[error("it is made of letters, digits, `_`, `.` and `-`, with `/` between the words")]
    Characters,
    #[error("it is neither an operating system nor an architecture that is known")]
    Word,
    #[error("it has more than three parts")]
    Parts,
}

impl PlatformError {
    /// How a platform is written.
    pub fn hint(&self) -> String {
        "write OS/ARCHITECTURE[/VARIANT], as in `linux/arm64` or `linux/arm/v7`".to_owned()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        text.parse().unwrap()
    }

    #[test]
    fn every_spelling_becomes_containerds() {
        let table = [
            ("linux/x86_64", "linux/amd64"),
            ("linux/x86-64/v1", "linux/amd64"),
            ("Linux/AMD64/V3", "linux/amd64/v3"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm64/8", "linux/arm64"),
            ("linux/arm64/v8.0", "linux/arm64"),
            ("linux/arm64/9", "linux/arm64/v9"),
            ("linux/arm64/v9.2", "linux/arm64/v9.2"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/arm/6", "linux/arm/v6"),
            ("linux/armhf", "linux/arm/v7"),
            ("linux/armel", "linux/arm/v6"),
            ("linux/i386", "linux/386"),
            ("linux/i686", "linux/386"),
            ("macos/arm64", "darwin/arm64"),
            ("linux/riscv64", "linux/riscv64"),
            ("windows(10.0.17763)/amd64", "windows(10.0.17763)/amd64"),
        ];
        for (typed, expected) in table {
            assert_eq!(platform(typed).to_string(), expected, "{typed}");
            assert_eq!(platform(expected), platform(typed));
        }
    }

    #[test]
    fn one_word_is_completed_with_the_host() {
        assert_eq!(platform("arm64"), Platform::new(std::env::consts::OS, "arm64", None));
        assert_eq!(platform("linux").architecture(), Platform::host().architecture());
    }

    #[test]
    fn what_is_no_platform_is_refused() {
        for text in ["", "/", "linux/", "/amd64", "a/b/c/d", "linux/am d64", "banana", "linux/../x", "linux\u{1b}/x"] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
    }

    #[test]
    fn variants_fall_back_in_containerds_order() {
        let table: [(&str, &[&str], Option<usize>); 24] = [
            ("linux/amd64", &["linux/arm64", "linux/amd64"], Some(1)),
            ("linux/amd64", &["linux/amd64/v2"], None),
            ("linux/amd64/v3", &["linux/amd64", "linux/amd64/v2", "linux/amd64/v3", "linux/amd64/v4"], Some(2)),
            ("linux/amd64/v3", &["linux/amd64/v4", "linux/amd64", "linux/amd64/v2"], Some(2)),
            ("linux/amd64/v4", &["linux/amd64/v1"], Some(0)),
            ("linux/amd64", &["linux/386"], Some(0)),
            ("linux/amd64", &["linux/386", "linux/amd64"], Some(1)),
            ("linux/386", &["linux/amd64"], None),
            ("linux/arm64", &["linux/arm/v7", "linux/arm64/v8"], Some(1)),
            ("linux/arm64", &["linux/arm/v5", "linux/arm/v7", "linux/arm/v6"], Some(1)),
            ("linux/arm64", &["linux/arm/v7", "linux/arm/v8"], Some(1)),
            ("linux/arm64", &["linux/arm64/v9"], None),
            ("linux/arm64/v9", &["linux/arm64"], Some(0)),
            ("linux/arm64/v9", &["linux/arm64/v8.5", "linux/arm64", "linux/arm64/v9"], Some(2)),
            ("linux/arm64/v9", &["linux/arm64/v8.6", "linux/arm64/v8.1"], Some(1)),
            ("linux/arm64/v8.2", &["linux/arm64/v8.3", "linux/arm64/v8.1"], Some(1)),
            ("linux/arm/v7", &["linux/arm/v8", "linux/arm/v5", "linux/arm/v6"], Some(2)),
            ("linux/arm/v6", &["linux/arm/v7"], None),
            ("linux/arm/v6", &["linux/arm"], None),
            ("linux/arm", &["linux/arm64"], None),
            ("linux/s390x", &["linux/amd64", "linux/s390x", "linux/s390x"], Some(1)),
            ("linux/amd64", &["windows/amd64"], None),
            ("linux/amd64/weird", &["linux/amd64", "linux/amd64/weird"], Some(1)),
            ("linux/amd64", &[], None),
        ];
        for (wanted, offered, expected) in table {
            let platforms: Vec<_> = offered.iter().map(|text| platform(text)).collect();
            assert_eq!(choose(&platform(wanted), &platforms), expected, "{wanted} of {offered:?}");
        }
    }

    #[test]
    fn windows_fits_by_build_and_prefers_the_same_revision() {
        let wanted = platform("windows(10.0.17763.1)/amd64");
        let offered = ["windows(10.0.14393.1)/amd64", "windows(10.0.17763.9)/amd64", "windows(10.0.17763.1)/amd64"];
        let offered: Vec<_> = offered.iter().map(|text| platform(text)).collect();
        assert_eq!(best_first(&wanted, &offered), [2, 1]);
        assert_eq!(best_first(&platform("windows/amd64"), &offered), [0, 1, 2]);
    }

    #[test]
    fn a_feature_that_is_not_there_rules_an_offer_out() {
        let plain = platform("linux/amd64");
        let offered = [plain.clone().with_os(None, &["erofs".to_owned()]), plain.clone()];
        assert_eq!(best_first(&plain, &offered), [1]);
        assert_eq!(best_first(&offered[0], &offered), [0, 1]);
        let windows = [platform("windows/amd64").with_os(None, &["win32k".to_owned()])];
        assert_eq!(choose(&platform("windows/amd64"), &windows), Some(0));
    }

    #[test]
    fn the_host_runs_what_is_built_for_it() {
        let host = Platform::host();
        assert!(host.runs(&host), "{host}");
        assert!(host.runs(&Platform::new(host.os(), host.architecture(), None)) || host.architecture() == "arm");
    }

    #[test]
    fn arm_variants_are_read_from_cpuinfo() {
        let table = [
            ("CPU architecture: 7\n", Some("v7")),
            ("model name\t: ARMv6-compatible processor rev 7 (v6l)\nCPU architecture: 7\n", Some("v6")),
            ("CPU architecture\t: 5TEJ\n", Some("v5")),
            ("CPU architecture: 8\n", Some("v8")),
            ("processor: 0\n", None),
            ("", None),
        ];
        for (cpuinfo, expected) in table {
            assert_eq!(arm_variant_of(cpuinfo), expected, "{cpuinfo}");
        }
    }

    #[test]
    fn hostile_platforms_print_harmlessly() {
        let platform = Platform::new("\u{1b}[31m", &"x".repeat(10_000), None);
        assert!(platform.to_string().len() < 200);
        assert!(!platform.to_string().contains('\u{1b}'));
    }
}
