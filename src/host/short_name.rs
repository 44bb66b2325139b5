//! Names without a registry: which images they may stand for, by podman's configuration.

use std::path::PathBuf;

use super::error::HostError;
use super::open;
use super::spec::ImageSpec;
use crate::reference::{Place, Reference};
use crate::source::SourceError;
use crate::source::registry::mirrors::{Files, RegistriesConf, ShortNames, unusable};

/// What a reference stands for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Meaning {
    /// What is written.
    AsWritten,
    /// The first of these that exists, by this file; there is at least one.
    Elsewhere {
        /// The images, in the order in which they are looked for.
        references: Vec<Reference>,
        /// The file that says so.
        file: PathBuf,
        /// Whether the user has to say which of several is meant.
        ask: bool,
    },
}

/// What the reference of `image` stands for.
///
/// # Errors
/// [`HostError::Source`] for a file that cannot be used.
pub fn meaning(image: &ImageSpec) -> Result<Meaning, HostError> {
    let (Some(short), Place::Registry(name)) = (image.reference.short_name(), image.reference.place()) else {
        return Ok(Meaning::AsWritten);
    };
    if image.access.mirrors.no_files {
        return Ok(Meaning::AsWritten);
    }
    let conf = RegistriesConf::load(&Files::of(&image.access.surroundings)).map_err(|error| unusable(&error))?;
    let Some(ShortNames { names, file, ask }) = conf.short_names(short, name) else { return Ok(Meaning::AsWritten) };
    if names == [name.clone()] {
        return Ok(Meaning::AsWritten);
    }
    let references = names.iter().filter_map(|name| name.to_string().parse().ok()).collect();
    Ok(Meaning::Elsewhere { references, file, ask })
}

/// The first of `references` that its registry has; one that cannot be asked is passed over.
///
/// # Errors
/// [`HostError`] of the last if none has it.
pub async fn first(references: &[Reference], image: &ImageSpec) -> Result<Reference, HostError> {
    let store = open::shared_layers(&image.cache)?;
    let mut last = None;
    for reference in references {
        let (source, _) = open::source(reference, &image.access, store.store()).await?;
        match source.head().await {
            Ok(_) => return Ok(reference.clone()),
            Err(error) => {
                tracing::debug!("{reference} is passed over: {error}");
                // What a registry lacks says less than why another could not be asked.
                let lacks = matches!(error, SourceError::NotFound { .. });
                if last.is_none() || !lacks {
                    last = Some(error);
                }
            }
        }
    }
    Err(last.expect("there is at least one reference").into())
}
