//! Attributes, access mode and mount options of a volume. Pod authors write these, and must gain no access to the node:
//! images must be in a registry, as a path would be one of the node; the operator of the plugin sets how to reach
//! registries, and the cache.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

use peelfs::host::spec::KernelOptions;
use peelfs::image::{Prefetch, Verify};
use peelfs::platform::Platform;
use peelfs::reference::{Place, Reference};
use peelfs::source::outage::OnOutage;
use serde::{Deserialize, Serialize};

use crate::generated::csi::v1::VolumeCapability;
use crate::generated::csi::v1::volume_capability::AccessType;
use crate::generated::csi::v1::volume_capability::access_mode::Mode;

/// The attributes as written. Equal attributes give the same content.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Attributes {
    image: String,
    platform: Option<String>,
    /// A directory of the image, relative to its root.
    pub(crate) sub_path: Option<PathBuf>,
    verify: String,
    prefetch: String,
    on_outage: Option<String>,
    options: Vec<String>,
    /// The pod's namespace, if known.
    pub(crate) namespace: Option<String>,
}

/// The same, parsed.
#[derive(Debug)]
pub(crate) struct ParsedAttributes {
    pub(crate) reference: Reference,
    pub(crate) platform: Option<Platform>,
    pub(crate) verify: Verify,
    pub(crate) prefetch: Prefetch,
    pub(crate) on_outage: Option<OnOutage>,
    pub(crate) kernel: KernelOptions,
}

/// Why a volume cannot be published; shown to the pod's author.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct NotPossible(pub(crate) String);

fn not_possible<T>(why: impl Into<String>) -> Result<T, NotPossible> {
    Err(NotPossible(why.into()))
}

impl Attributes {
    /// Parses the attributes that Kubernetes passes for a volume.
    pub(crate) fn parse(context: &HashMap<String, String>, flags: &[String]) -> Result<Self, NotPossible> {
        let mut unknown: Vec<_> =
            context.keys().filter(|key| !KNOWN.contains(&key.as_str()) && !is_of_kubernetes(key)).collect();
        unknown.sort();
        if let Some(unknown) = unknown.first() {
            return not_possible(format!(
                "unknown volume attribute `{}`; attributes are {}",
                unknown.escape_debug(),
                KNOWN.map(|name| format!("`{name}`")).join(", ")
            ));
        }
        let value = |key: &str| context.get(key).filter(|value| !value.is_empty()).cloned();
        let Some(image) = value("image") else {
            return not_possible("the volume attribute `image` is missing: it names the image to mount");
        };
        let attributes = Self {
            image,
            platform: value("platform"),
            sub_path: value("subPath").map(|path| relative(&path)).transpose()?.flatten(),
            verify: value("verify").unwrap_or_else(|| "strict".to_owned()),
            prefetch: value("prefetch").unwrap_or_else(|| "profile".to_owned()),
            on_outage: value("onOutage"),
            options: flags.to_vec(),
            namespace: value(NAMESPACE),
        };
        attributes.parsed()?;
        Ok(attributes)
    }

    /// The image, as it was written.
    pub(crate) fn image(&self) -> &str {
        &self.image
    }

    /// The registry of the image, as files of credentials name it.
    pub(crate) fn registry(&self) -> String {
        match self.image.parse::<Reference>().as_ref().map(Reference::place) {
            Ok(Place::Registry(name)) => name.authority(),
            _ => String::new(),
        }
    }

    /// Their parsed values.
    pub(crate) fn parsed(&self) -> Result<ParsedAttributes, NotPossible> {
        let wrong = |key: &str, value: &str, why: &dyn std::fmt::Display| {
            NotPossible(format!("volume attribute `{key}`: `{}`: {why}", value.escape_debug()))
        };
        let reference: Reference = self.image.parse().map_err(|error| wrong("image", &self.image, &error))?;
        if !matches!(reference.place(), Place::Registry(_)) {
            return Err(wrong(
                "image",
                &self.image,
                &"it names files of the node; only images of registries are mounted",
            ));
        }
        let platform = self.platform.as_ref().map(|text| text.parse().map_err(|error| wrong("platform", text, &error)));
        let on_outage =
            self.on_outage.as_ref().map(|text| text.parse().map_err(|error| wrong("onOutage", text, &error)));
        Ok(ParsedAttributes {
            reference,
            platform: platform.transpose()?,
            verify: match self.verify.as_str() {
                "strict" => Verify::BeforeShowing,
                "behind" => Verify::Behind,
                // It would have the pod's author say whom the node believes.
                "vouched" => return Err(wrong("verify", "vouched", &BY_OPERATOR)),
                other => return Err(wrong("verify", other, &"it is `strict` or `behind`")),
            },
            prefetch: match self.prefetch.as_str() {
                "all" => Prefetch::All,
                "profile" => Prefetch::Profile,
                "none" => Prefetch::None,
                other => return Err(wrong("prefetch", other, &"it is `all`, `profile` or `none`")),
            },
            on_outage: on_outage.transpose()?,
            kernel: options(&self.options)?,
        })
    }
}

/// The kernel options. Containers run as any user. Set-user-id programs and devices of an image stay inert: otherwise a
/// pod's author could use them on the node.
fn options(flags: &[String]) -> Result<KernelOptions, NotPossible> {
    let mut kernel = KernelOptions { allow_other: true, ..KernelOptions::default() };
    for flag in flags {
        match flag.as_str() {
            "noexec" => kernel.noexec = true,
            "ro" | "nosuid" | "nodev" | "noatime" | "relatime" | "nodiratime" => {}
            other => {
                return not_possible(format!(
                    "mount option `{}` is not supported; `ro`, `nosuid`, `nodev` and `noatime` always apply, and there is \
                     `noexec`",
                    other.escape_debug()
                ));
            }
        }
    }
    Ok(kernel)
}

/// A path below the image's root; none if it is the root itself.
fn relative(path: &str) -> Result<Option<PathBuf>, NotPossible> {
    let mut below = PathBuf::new();
    for part in Path::new(path).components() {
        match part {
            Component::Normal(name) => below.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return not_possible(format!(
                    "volume attribute `subPath`: `{}` must not have `..`",
                    path.escape_debug()
                ));
            }
        }
    }
    Ok(Some(below).filter(|below| !below.as_os_str().is_empty()))
}

/// The mount options of a volume that can be published: a directory, for reading.
pub(crate) fn mount_flags(capability: &VolumeCapability, readonly: bool) -> Result<&[String], NotPossible> {
    let flags = match &capability.access_type {
        Some(AccessType::Mount(mount)) => &mount.mount_flags,
        Some(AccessType::Block(_)) => {
            return not_possible("an image is not a block device: use `volumeMode: Filesystem`");
        }
        None => return not_possible("the volume capability has no access type"),
    };
    let mode = capability.access_mode.as_ref().map(|mode| mode.mode());
    let only_reads = matches!(mode, Some(Mode::SingleNodeReaderOnly | Mode::MultiNodeReaderOnly));
    if !readonly && !only_reads {
        return not_possible(
            "images can only be read: set `readOnly: true` in the pod's `csi:` volume, or the access mode `ReadOnlyMany` in \
             the persistent volume",
        );
    }
    Ok(flags)
}

/// Keys that Kubernetes and its sidecars add.
fn is_of_kubernetes(key: &str) -> bool {
    key.starts_with("csi.storage.k8s.io/") || key.starts_with("storage.kubernetes.io/")
}

const BY_OPERATOR: &str = "which indexes of others are believed is for the operator of the node to say (`peelfs csi --index-from`); \
                           a volume is `strict` or `behind`";
const NAMESPACE: &str = "csi.storage.k8s.io/pod.namespace";
const KNOWN: [&str; 6] = ["image", "platform", "subPath", "verify", "prefetch", "onOutage"];

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::generated::csi::v1::volume_capability::{AccessMode, BlockVolume, MountVolume};

    fn parsed(attributes: &[(&str, &str)], flags: &[&str]) -> Result<Attributes, String> {
        let context = attributes.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let flags: Vec<_> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        Attributes::parse(&context, &flags).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_known_is_taken_and_the_rest_is_named() {
        let all = [
            ("image", "python:3.12"),
            ("platform", "linux/arm64"),
            ("subPath", "/usr//lib/./x/"),
            ("verify", "behind"),
            ("prefetch", "all"),
            ("onOutage", "block"),
            ("csi.storage.k8s.io/ephemeral", "true"),
            ("csi.storage.k8s.io/pod.namespace", "team"),
            ("storage.kubernetes.io/csiProvisionerIdentity", "x"),
        ];
        let attributes = parsed(&all, &["ro", "noexec"]).unwrap();
        assert_eq!(attributes.sub_path.as_deref(), Some(Path::new("usr/lib/x")));
        assert_eq!(attributes.namespace.as_deref(), Some("team"));
        let wanted = attributes.parsed().unwrap();
        assert!(wanted.kernel.allow_other && wanted.kernel.noexec && !wanted.kernel.suid && !wanted.kernel.dev);
        assert_eq!((wanted.verify, wanted.prefetch), (Verify::Behind, Prefetch::All));
        assert_eq!(parsed(&[("image", "a"), ("subPath", "/")], &[]).unwrap().sub_path, None);
        for (wrong, flag, why) in [
            (&[("platform", "linux/arm64")][..], "ro", "`image` is missing"),
            (&[("image", "")], "ro", "`image` is missing"),
            (&[("image", "a"), ("subpath", "x")], "ro", "unknown volume attribute `subpath`"),
            (&[("image", "oci:/var/lib")], "ro", "only images of registries"),
            (&[("image", "docker-archive:/a.tar")], "ro", "only images of registries"),
            (&[("image", "UPPER")], "ro", "`image`: `UPPER`"),
            (&[("image", "a"), ("subPath", "a/../b")], "ro", "must not have `..`"),
            (&[("image", "a"), ("verify", "no")], "ro", "`strict` or `behind`"),
            (&[("image", "a"), ("verify", "vouched")], "ro", "is for the operator of the node to say"),
            (&[("image", "a"), ("prefetch", "some")], "ro", "`all`, `profile` or `none`"),
            (&[("image", "a"), ("onOutage", "never")], "ro", "`onOutage`: `never`"),
            (&[("image", "a"), ("platform", "x y")], "ro", "`platform`"),
            (&[("image", "a")], "suid", "`suid` is not supported"),
            (&[("image", "a")], "rw", "`rw` is not supported"),
        ] {
            let error = parsed(wrong, &[flag]).unwrap_err();
            assert!(error.contains(why), "{wrong:?}: {error}");
        }
    }

    #[test]
    fn only_directories_for_reading_are_published() {
        let mount = || Some(AccessType::Mount(MountVolume::default()));
        let capability = |access_type, mode: Mode| VolumeCapability {
            access_type,
            access_mode: Some(AccessMode { mode: mode.into() }),
        };
        for (mode, readonly, possible) in [
            (Mode::SingleNodeWriter, true, true),
            (Mode::SingleNodeWriter, false, false),
            (Mode::MultiNodeMultiWriter, false, false),
            (Mode::MultiNodeReaderOnly, false, true),
            (Mode::SingleNodeReaderOnly, false, true),
            (Mode::Unknown, false, false),
        ] {
            assert_eq!(mount_flags(&capability(mount(), mode), readonly).is_ok(), possible, "{mode:?} {readonly}");
        }
        let block = capability(Some(AccessType::Block(BlockVolume {})), Mode::SingleNodeWriter);
        assert!(mount_flags(&block, true).unwrap_err().to_string().contains("not a block device"));
        assert!(mount_flags(&capability(None, Mode::SingleNodeWriter), true).is_err());
    }
}
