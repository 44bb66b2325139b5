//! Limits repeated log lines: one a minute of each message and layer is written, the rest counted.
//!
//! A faulty layer, disk or registry can log the same line a hundred thousand times, and a log in a runtime directory
//! uses memory. Lines with a `layer` field are grouped by source location and layer, others by location alone, with a
//! few written each minute.

use std::cell::Cell;
use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber, callsite::Identifier};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Lines written and suppressed.
#[derive(Default)]
pub(super) struct Repeats(Mutex<HashMap<(Identifier, String), Seen>>);

struct Seen {
    since: Instant,
    written: u32,
    held_back: u64,
    text: String,
}

impl Repeats {
    /// Whether to write an event; [`Counted`] then appends the number suppressed.
    pub(super) fn admit(&self, event: &Event<'_>) -> bool {
        if *event.metadata().level() > Level::WARN {
            return true;
        }
        let mut fields = Fields::default();
        event.record(&mut fields);
        let most = if fields.layer.is_empty() { MOST_A_MINUTE } else { 1 };
        self.admit_at(Instant::now(), event.metadata().callsite(), fields, most)
    }

    fn admit_at(&self, now: Instant, place: Identifier, fields: Fields, most: u32) -> bool {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() >= MOST_KINDS {
            seen.retain(|_, seen| seen.held_back > 0 && now - seen.since < WINDOW);
            if seen.len() >= MOST_KINDS {
                seen.clear();
            }
        }
        let text = fields.message;
        let seen =
            seen.entry((place, fields.layer)).or_insert_with(|| Seen { since: now, written: 0, held_back: 0, text });
        if now - seen.since >= WINDOW {
            (seen.since, seen.written) = (now, 0);
        }
        if seen.written >= most {
            seen.held_back += 1;
            return false;
        }
        seen.written += 1;
        HELD_BACK.set(std::mem::take(&mut seen.held_back));
        true
    }

    /// Lines about suppressed events that were not reported yet, for the end.
    pub(super) fn rest(&self) -> Vec<String> {
        let seen = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let mut lines: Vec<String> = seen
            .into_iter()
            .filter(|(_, seen)| seen.held_back > 0)
            .map(|((_, layer), seen)| {
                let of = if layer.is_empty() { String::new() } else { format!(" (layer {layer})") };
                format!("… and {} more like it: {}{of}", seen.held_back, seen.text)
            })
            .collect();
        lines.sort();
        lines
    }
}

/// The fields of an event that repeats are grouped by.
#[derive(Default)]
struct Fields {
    message: String,
    layer: String,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let place = match field.name() {
            "message" => &mut self.message,
            "layer" => &mut self.layer,
            _ => return,
        };
        // Writing to a string cannot fail.
        let _ = write!(place, "{value:?}");
    }
}

thread_local! {
    /// Suppressed events like the one being written.
    static HELD_BACK: Cell<u64> = const { Cell::new(0) };
}

/// A format that appends the number of suppressed lines.
pub(super) struct Counted<F>(pub(super) F);

impl<S, N, F> FormatEvent<S, N> for Counted<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        self.0.format_event(context, writer.by_ref(), event)?;
        match HELD_BACK.take() {
            0 => Ok(()),
            count => writeln!(writer, "  … and {count} more like it before"),
        }
    }
}

const WINDOW: Duration = Duration::from_secs(60);
/// Limit for lines of one location without a layer.
const MOST_A_MINUTE: u32 = 20;
/// Limit on groups.
const MOST_KINDS: usize = 4096;

#[cfg(test)]
mod tests {
    use tracing::callsite::Callsite as _;

    use super::*;

    fn place() -> Identifier {
        use tracing::Metadata;
        use tracing::field::FieldSet;
        use tracing::metadata::Kind;
        struct Here;
        static META: Metadata<'static> = tracing::metadata! {
            name: "here", target: "here", level: Level::WARN, fields: &[], callsite: &Here, kind: Kind::EVENT
        };
        impl tracing::Callsite for Here {
            fn set_interest(&self, _: tracing::subscriber::Interest) {}

            fn metadata(&self) -> &Metadata<'_> {
                &META
            }
        }
        let _: &FieldSet = META.fields();
        Here.metadata().callsite()
    }

    #[test]
    fn one_line_a_layer_and_minute_is_logged_others_are_counted() {
        let (repeats, begun) = (Repeats::default(), Instant::now());
        let fields = |layer: &str| Fields { message: "it is damaged".into(), layer: layer.into() };
        let admit = |seconds, layer: &str, most| {
            let admitted = repeats.admit_at(begun + Duration::from_secs(seconds), place(), fields(layer), most);
            admitted.then(|| HELD_BACK.take())
        };
        assert_eq!((admit(0, "a", 1), admit(0, "b", 1)), (Some(0), Some(0)));
        assert!((0..300_000).all(|_| admit(1, "a", 1).is_none()));
        assert_eq!(admit(59, "b", 1), None);
        assert_eq!(admit(60, "a", 1), Some(300_000));
        assert_eq!((0..30).filter(|_| admit(61, "", MOST_A_MINUTE).is_some()).count(), 20);
        assert_eq!(
            repeats.rest(),
            ["… and 1 more like it: it is damaged (layer b)", "… and 10 more like it: it is damaged"]
        );
        assert_eq!(repeats.rest(), [] as [String; 0]);
    }

    #[test]
    fn kinds_are_bounded() {
        let (repeats, now) = (Repeats::default(), Instant::now());
        for number in 0..3 * MOST_KINDS {
            let fields = Fields { message: String::new(), layer: number.to_string() };
            assert!(repeats.admit_at(now, place(), fields, 1));
        }
        assert!(repeats.0.lock().unwrap_or_else(PoisonError::into_inner).len() <= MOST_KINDS);
    }
}
