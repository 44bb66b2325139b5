//! Who asks for what, for status.

use std::sync::Arc;

use super::wire::Request;

/// Who asks for what.
#[derive(Clone, Debug, Default)]
pub(super) struct Asked {
    pub(super) thread: u32,
    pub(super) node: u64,
    pub(super) operation: &'static str,
    /// For a lookup.
    pub(super) name: Option<Arc<[u8]>>,
}

impl Asked {
    pub(super) fn of(request: &Request<'_>) -> Self {
        Self { thread: request.thread, node: request.node, operation: request.operation.name(), name: None }
    }

    pub(super) fn for_name(&mut self, name: &Arc<[u8]>) {
        self.name = Some(Arc::clone(name));
    }
}
