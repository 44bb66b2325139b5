//! Cold reads: those that have to wait for the source.

use std::collections::HashMap;
use std::sync::Arc;

use super::{LayerReader, PlaceInFile, ReadError, fetch};
use crate::layer::SpanId;
use crate::offsets::DecodedOffset;

/// Fills `buf` with the decoded bytes at `from`, span by span, as they arrive.
///
/// The bytes are taken from what was fetched, not read back from the store, so a full disk or an
/// eviction in between does not matter.
pub(super) async fn read_missing(
    layer: &Arc<LayerReader>,
    from: DecodedOffset,
    buf: &mut [u8],
    in_file: PlaceInFile,
) -> Result<(), ReadError> {
    let end = from + buf.len() as u64;
    let wanted = layer.spans_of(from..end)?;
    let mut missing = Vec::new();
    for span in wanted.clone() {
        let known = layer.index.span(SpanId(span)).map_err(|cause| layer.index_error(cause))?;
        let begin = known.decoded.start.max(from);
        let stop = known.decoded.end.min(end);
        let place = (begin - from) as usize..(stop - from) as usize;
        if !layer.read_stored(begin, &mut buf[place.clone()], &mut || ())? {
            layer.record(span);
            missing.push((span, known.decoded.start, place));
        }
    }
    let _waiting = layer.scope.wait();
    // Runs that nobody had expected, and whose neighbours may be wanted, too.
    let mut surprising = Vec::new();
    // What has come since it was looked for is in the store; what cannot be read there, and what another mount does not
    // bring, is fetched after all.
    for again in [false, true] {
        let mut arriving = HashMap::new();
        let mut rest = missing.as_slice();
        while let Some((first, ..)) = rest.first() {
            let run = rest.iter().enumerate().take_while(|(step, (span, ..))| *span == first + *step as u32).count();
            let run = *first..first + run as u32;
            if !again && !layer.is_expected(&run) {
                surprising.push(run.clone());
            }
            let (around, room) = layer.around(&run)?;
            arriving.extend(fetch::start(layer, &run, around, room, again)?);
            rest = &rest[run.len()..];
        }
        if !again {
            layer.stream(from..end, in_file, true);
            layer.speculate_siblings(in_file, &wanted);
        }
        let mut unread = Vec::new();
        for (span, start, place) in missing {
            let begin = from + place.start as u64;
            match arriving.remove(&span) {
                Some(arrival) => {
                    let Some(bytes) = arrival.outcome().await else {
                        unread.push((span, start, place));
                        continue;
                    };
                    let bytes = bytes?;
                    let skip = (begin - start) as usize;
                    let length = place.len();
                    buf[place].copy_from_slice(&bytes[skip..skip + length]);
                }
                None if layer.read_stored(begin, &mut buf[place.clone()], &mut || ())? => {}
                None => unread.push((span, start, place)),
            }
        }
        if unread.is_empty() {
            // Not before: what somebody waits for need not share the link with them.
            surprising.iter().for_each(|run| layer.speculate_before(run, end - from));
            return Ok(());
        }
        missing = unread;
    }
    Err(ReadError::Ended { layer: layer.layer_name() })
}
