//! What is believed of the layers of a mount.

use std::sync::Arc;

use crate::content::{FromRegistry, IndexChoice, LayerRef, Origin, PushedIndexes};

/// When a layer's files may be shown.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verify {
    /// Once the whole layer is verified.
    BeforeShowing,
    /// While it is read; if it fails verification, all later reads fail.
    Behind,
}

/// What is believed of layers, and when it is shown.
#[derive(Clone, Debug)]
pub struct Trust {
    /// When files may be shown.
    pub verify: Verify,
    /// Which indexes may be used.
    pub index: IndexChoice,
    /// Where indexes are that others have pushed, if such may be used.
    pub pushed: Option<Arc<PushedIndexes>>,
}

impl From<Verify> for Trust {
    fn from(verify: Verify) -> Self {
        Self { verify, index: IndexChoice::default(), pushed: None }
    }
}

impl Trust {
    /// Where an index may come from, in the order in which it is asked for.
    pub fn origins(&self) -> &'static [Origin] {
        let pushed = if self.pushed.is_some() { FromRegistry::Named } else { FromRegistry::Never };
        self.index.origins(pushed)
    }

    /// Whether an index of a layer may be fetched.
    pub(super) fn may_fetch_index(&self, layer: &LayerRef) -> bool {
        self.origins().iter().any(|origin| origin.is_fetched()) && self.may_have_index(layer)
    }

    fn may_have_index(&self, layer: &LayerRef) -> bool {
        let names_table = Origin::tables(layer).iter().any(|(_, wrong)| wrong.is_none()) || layer.soci.is_some();
        names_table || (self.pushed.is_some() && layer.file().is_none())
    }

    /// Those of them whose indexes in the cache are used before any origin is asked.
    pub(super) fn stored_origins(&self, layer: &LayerRef) -> &'static [Origin] {
        let all = self.origins();
        if self.index == IndexChoice::Foreign && self.may_have_index(layer) {
            // The layer's own index comes behind the tables, wherever these are.
            &all[..all.iter().position(|origin| *origin == Origin::Store).unwrap_or(all.len())]
        } else {
            all
        }
    }
}
