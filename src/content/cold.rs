//! Cold reads: those that have to wait for the source.

use std::sync::Arc;

use super::{LayerContent, ReadError, fetch};
use crate::layer::SpanId;
use crate::offsets::DecodedOffset;

/// Fills `buf` with the decoded bytes at `from`, span by span, as they arrive.
///
/// The bytes are taken from what was fetched, not read back from the store, so a full disk or an
/// eviction in between does not matter.
pub(super) async fn read(layer: &Arc<LayerContent>, from: DecodedOffset, buf: &mut [u8]) -> Result<(), ReadError> {
    let end = from + buf.len() as u64;
    let wanted = layer.spans_of(from..end)?;
    let mut missing = Vec::new();
    for span in wanted {
        let known = layer.index.span(SpanId(span)).map_err(|cause| layer.index_error(cause))?;
        let begin = known.decoded.start.max(from);
        let stop = known.decoded.end.min(end);
        let place = (begin - from) as usize..(stop - from) as usize;
        if !layer.read_stored(begin, &mut buf[place.clone()], &mut || ())? {
            layer.want(span);
            missing.push((span, (begin - known.decoded.start) as usize, place));
        }
    }
    let _waiting = layer.traffic.wait();
    let mut waiting = Vec::new();
    let mut rest = missing.as_slice();
    while let Some((first, ..)) = rest.first() {
        let run = rest.iter().enumerate().take_while(|(step, (span, ..))| *span == first + *step as u32).count();
        let run = *first..first + run as u32;
        let (around, room) = layer.around(&run)?;
        waiting.extend(fetch::start(layer, &run, around, room)?);
        rest = &rest[run.len()..];
    }
    for ((_, mut receiver), (_, skip, place)) in waiting.into_iter().zip(missing) {
        let outcome = receiver
            .wait_for(Option::is_some)
            .await
            .map_err(|_| ReadError::Ended { layer: layer.layer_name() })?
            .clone()
            .expect("waited until there is one");
        let length = place.len();
        buf[place].copy_from_slice(&outcome?[skip..skip + length]);
    }
    Ok(())
}
