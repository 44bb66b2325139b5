//! The configuration of an image (image-spec, config.md).

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::choose::ResolveError;
use super::error::DocumentError;
use super::keys::{self, check_keys};
use super::{WirePlatform, read, shown};
use crate::digest::Digest;
use crate::platform::Platform;

/// What a manifest's configuration says (image-spec, config.md).
#[derive(Clone, Debug)]
pub struct ImageConfig {
    /// What the image runs on; none if the configuration leaves it open.
    pub platform: Option<Platform>,
    /// The digests of the uncompressed layers, base first; as many as the manifest has layers.
    pub diff_ids: Vec<Digest>,
    /// The whole document as it was written.
    pub raw: Box<RawValue>,
}

/// What an image is there to run (image-spec, config.md, `Entrypoint` and `Cmd`).
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Command {
    /// The program, and the one that it may be there to start.
    pub programs: Vec<String>,
    /// Directories in which programs are looked for.
    pub path: Vec<String>,
    /// The directory in which it runs.
    pub directory: String,
}

impl ImageConfig {
    /// Reads the configuration of a manifest with `layers` layers.
    ///
    /// # Errors
    /// [`DocumentError`]; in particular if there is no diff_id for each layer.
    pub fn parse(bytes: &[u8], layers: usize) -> Result<Self, DocumentError> {
        check_keys(bytes, keys::CONFIG)?;
        let wire: WireConfig = read(bytes)?;
        let raw: Box<RawValue> = read(bytes)?;
        let rootfs = wire.rootfs.ok_or(DocumentError::NoRootfs)?;
        match rootfs.kind.as_deref() {
            Some("layers") => {}
            Some(kind) => return Err(DocumentError::RootfsType { kind: shown(kind) }),
            None => return Err(DocumentError::NoRootfs),
        }
        let diff_ids = rootfs.diff_ids.unwrap_or_default();
        if diff_ids.len() != layers {
            return Err(DocumentError::LayerCount { diff_ids: diff_ids.len(), layers });
        }
        Ok(Self { platform: wire.platform.platform(), diff_ids, raw })
    }

    /// The configuration of an artifact, as far as it is JSON: nothing in it says how layers are read.
    pub fn of_artifact(bytes: &[u8]) -> Self {
        let raw = serde_json::from_slice(bytes).unwrap_or_else(|_| RawValue::NULL.to_owned());
        Self { platform: None, diff_ids: Vec::new(), raw }
    }

    /// What the image is there to run.
    pub fn command(&self) -> Command {
        // A runtime will say what is wrong with it.
        let wire: WireCommand = serde_json::from_str(self.raw.get()).unwrap_or_default();
        let WireProcess { entrypoint, command, environment, directory } = wire.config.unwrap_or_default();
        let first = |words: Option<Vec<String>>| words.and_then(|words| words.into_iter().next());
        let programs = [first(entrypoint), first(command)].into_iter().flatten().collect();
        let path =
            environment.unwrap_or_default().into_iter().find_map(|text| text.strip_prefix("PATH=").map(str::to_owned));
        let path = path.as_deref().unwrap_or(USUAL_PATH).split(':').map(str::to_owned).collect();
        Command { programs, path, directory: directory.unwrap_or_default() }
    }

    /// Whether the image runs on `wanted`, as far as its configuration tells.
    ///
    /// # Errors
    /// [`ResolveError::NoPlatform`] with the one platform there is.
    pub fn require(&self, wanted: &Platform) -> Result<(), ResolveError> {
        match &self.platform {
            Some(platform) if !wanted.runs(platform) => {
                Err(ResolveError::NoPlatform { wanted: wanted.clone(), offered: vec![platform.clone()] })
            }
            _ => Ok(()),
        }
    }
}

impl Command {
    /// Where a program may be, most likely first.
    pub fn paths_of<'a>(&'a self, program: &'a str) -> impl Iterator<Item = String> + 'a {
        let named = program.contains('/').then(|| match program.starts_with('/') {
            true => program.to_owned(),
            false => format!("{}/{program}", self.directory),
        });
        let searched = self.path.iter().filter(|_| !program.contains('/'));
        named.into_iter().chain(searched.map(move |directory| format!("{directory}/{program}")))
    }
}

/// Where programs are if an image does not say so.
const USUAL_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

// ---- the wire ----

#[derive(Default, Deserialize)]
struct WireCommand {
    config: Option<WireProcess>,
}

#[derive(Default, Deserialize)]
struct WireProcess {
    #[serde(rename = "Entrypoint")]
    entrypoint: Option<Vec<String>>,
    #[serde(rename = "Cmd")]
    command: Option<Vec<String>>,
    #[serde(rename = "Env")]
    environment: Option<Vec<String>>,
    #[serde(rename = "WorkingDir")]
    directory: Option<String>,
}

struct WireConfig<'a> {
    platform: WirePlatform<'a>,
    rootfs: Option<WireRootfs<'a>>,
}

impl<'de: 'a, 'a> Deserialize<'de> for WireConfig<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(expecting = "an object")]
        struct Flat<'a> {
            #[serde(borrow)]
            architecture: Option<Cow<'a, str>>,
            #[serde(borrow)]
            os: Option<Cow<'a, str>>,
            #[serde(borrow)]
            variant: Option<Cow<'a, str>>,
            #[serde(borrow, rename = "os.version")]
            os_version: Option<Cow<'a, str>>,
            #[serde(rename = "os.features")]
            os_features: Option<Vec<String>>,
            #[serde(borrow)]
            rootfs: Option<WireRootfs<'a>>,
        }
        let Flat { architecture, os, variant, os_version, os_features, rootfs } = Flat::deserialize(deserializer)?;
        Ok(Self { platform: WirePlatform { architecture, os, variant, os_version, os_features }, rootfs })
    }
}

#[derive(Deserialize)]
#[serde(expecting = "an object")]
struct WireRootfs<'a> {
    #[serde(borrow, rename = "type")]
    kind: Option<Cow<'a, str>>,
    diff_ids: Option<Vec<Digest>>,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn wanted(text: &str) -> Platform {
        text.parse().unwrap()
    }

    fn config(rootfs: &str) -> String {
        format!(r#"{{"os":"linux","architecture":"amd64","config":{{"Cmd":["sh"]}}{rootfs}}}"#)
    }

    #[test]
    fn a_configuration_has_one_diff_id_for_each_layer() {
        let text = config(&format!(r#","rootfs":{{"type":"layers","diff_ids":["{D}"]}}"#));
        let read = ImageConfig::parse(text.as_bytes(), 1).unwrap();
        assert_eq!(read.platform, Some(wanted("linux/amd64")));
        assert_eq!(read.diff_ids.len(), 1);
        assert_eq!(read.raw.get(), text);
        assert!(read.require(&wanted("linux/amd64/v2")).is_ok());
        assert!(read.require(&wanted("linux/arm64")).is_err());
        assert!(matches!(
            ImageConfig::parse(text.as_bytes(), 2),
            Err(DocumentError::LayerCount { diff_ids: 1, layers: 2 })
        ));
    }

    #[test]
    fn a_configuration_says_what_is_to_be_run_and_where_that_may_be() {
        let of = |process: &str| {
            let text = format!(r#"{{"config":{process},"rootfs":{{"type":"layers","diff_ids":[]}}}}"#);
            ImageConfig::parse(text.as_bytes(), 0).unwrap().command()
        };
        let command =
            of(r#"{"Entrypoint":["./start","-v"],"Cmd":["sh"],"Env":["A=b","PATH=/x:/y"],"WorkingDir":"/srv"}"#);
        assert_eq!(command.programs, ["./start", "sh"]);
        assert!(command.paths_of("sh").eq(["/x/sh", "/y/sh"]));
        assert!(command.paths_of("./start").eq(["/srv/./start"]));
        assert!(command.paths_of("/bin/sh").eq(["/bin/sh"]));
        assert_eq!(of(r#"{"Entrypoint":[],"Cmd":["sh"]}"#).programs, ["sh"]);
        for nothing in ["null", "{}", r#"{"Cmd":7}"#] {
            assert!(of(nothing).programs.is_empty(), "{nothing}");
        }
    }

    #[test]
    fn an_image_of_no_layers_is_an_image() {
        for diff_ids in ["[]", "null"] {
            let text = config(&format!(r#","rootfs":{{"type":"layers","diff_ids":{diff_ids}}}"#));
            assert_eq!(ImageConfig::parse(text.as_bytes(), 0).unwrap().diff_ids, []);
        }
    }

    #[test]
    fn a_configuration_without_layers_of_its_own_is_refused() {
        for rootfs in
            ["", r#","rootfs":null"#, r#","rootfs":{}"#, r#","rootfs":{"type":"layers+base"}"#, r#","RootFS":{}"#]
        {
            assert!(ImageConfig::parse(config(rootfs).as_bytes(), 0).is_err(), "{rootfs}");
        }
    }
}
