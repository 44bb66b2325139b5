//! Coverage: what readers have read of each large file, and what guesses about it were worth.
//!
//! Readers of data files jump: a database looks up a row, a shuffled training run takes one sample after another. What
//! lies around such a read is worth fetching only if it is read, too, and that differs by file and program. So each
//! large file has an account:
//!
//! - *Guesses around reads* may be wrong for 1 MiB of the blob, and for six bytes for each one that was read since. Below
//!   one byte in seven, they save little time for the bytes that they cost.
//! - *The rest of the file* is fetched once a reader has jumped about in it and has read in an eighth of it: twice as much
//!   as is read, and more the more of the file was read; what lies between its reads, so that a reader that works its way
//!   from one end is followed. One that stops ends that.
//!
//! A reader that goes through a file in one direction reads nothing that lies behind it, however much it leaves out. So only
//! reads between others count as jumps. What is read of a file is counted in regions of 256 KiB, the size of ordinary spans.
//! Where spans are smaller, lookups fetch little, so they should not be taken for a reader of everything: they come back to
//! regions in which they have read before, one that takes samples in random order does not.

use std::collections::{HashMap, HashSet};

use super::event::{Piece, StreamId, Suggestion, Urgency};
use super::layout::{Layout, REQUEST};
use crate::layer::IndexError;
use crate::offsets::DecodedOffset;
use crate::span::{SpanId, SpanRange};

/// Accounts of large files, the latest last.
#[derive(Debug, Default)]
pub(super) struct Coverage(Vec<File>);

/// What is known of the reads of one large file.
#[derive(Debug)]
struct File {
    /// Identifies the file.
    end: DecodedOffset,
    spans: SpanRange,
    /// Number of spans that were read.
    read: u32,
    /// Regions of which something was read, by number from the start of the file, and how many there are.
    regions: HashSet<u32>,
    of_regions: u32,
    /// From the first to the last span that was read, but for the file's ends: headers and footers are read first.
    extent: SpanRange,
    /// Number of regions that were read between others.
    between: u32,
    /// Number of spans that were read in a region of which another one had been read, far from the last read.
    again: u32,
    last: SpanId,
    /// Spans that were fetched on a guess and not read since, with their bytes in the blob.
    open: HashMap<SpanId, u64>,
    open_bytes: u64,
    /// Bytes of the blob that were fetched on a guess and read since.
    right: u64,
    rest: Option<Rest>,
}

/// Fetching the rest of a file.
#[derive(Debug)]
struct Rest {
    id: StreamId,
    /// What was suggested so far; grows at both ends.
    asked: SpanRange,
    /// Bytes of the blob that may be suggested.
    credit: u64,
}

impl Coverage {
    /// Records the spans of a piece that are read for the first time; returns what to fetch of the rest of its file.
    /// `streams` counts the streams of the layer.
    pub(super) fn read(
        &mut self,
        piece: &Piece,
        first: &[SpanId],
        streams: &mut u64,
        layout: &impl Layout,
    ) -> Result<Option<Suggestion>, IndexError> {
        let Some(file) = self.of(piece, layout)? else { return Ok(None) };
        let (region, mut bytes) = (layout.region(), 0);
        for span in first {
            if file.span_read(*span, region) {
                let end = span.forward(region).min(file.spans.end).max(span.next());
                bytes += layout.blob_bytes(SpanRange::new(*span, end))?;
            }
        }
        if file.rest.is_none() && file.is_jumped_about() {
            *streams += 1;
            file.rest = Some(Rest { id: StreamId(*streams), asked: SpanRange::none_at(file.extent.start), credit: 0 });
        }
        file.rest_for(bytes, layout)
    }

    /// Bytes of the blob that may be fetched around a piece on a guess; no limit for small files.
    pub(super) fn allowance(&mut self, piece: &Piece, layout: &impl Layout) -> Result<u64, IndexError> {
        let file = self.of(piece, layout)?;
        Ok(file.map_or(u64::MAX, |file| (FIRST + GAIN * file.right).saturating_sub(file.open_bytes)))
    }

    /// Records spans that are fetched around a piece on a guess.
    pub(super) fn guessed(&mut self, piece: &Piece, spans: SpanRange, layout: &impl Layout) -> Result<(), IndexError> {
        let Some(file) = self.of(piece, layout)? else { return Ok(()) };
        for span in spans.iter() {
            let bytes = layout.blob_bytes(SpanRange::one(span))?;
            if file.open.insert(span, bytes).is_none() {
                file.open_bytes += bytes;
            }
        }
        Ok(())
    }

    /// Records that spans suggested around a read are not fetched.
    pub(super) fn withdraw(&mut self, spans: SpanRange) {
        for file in &mut self.0 {
            for span in spans.iter() {
                file.open_bytes -= file.open.remove(&span).unwrap_or(0);
            }
        }
    }

    /// Records that these spans of the rest of a file are not fetched.
    pub(super) fn declined(&mut self, id: StreamId, spans: SpanRange) {
        let rest = self.0.iter_mut().find_map(|file| file.rest.as_mut().filter(|rest| rest.id == id));
        let Some(rest) = rest else { return };
        rest.credit = MOST_CREDIT;
        if spans.end == rest.asked.end {
            rest.asked.end = spans.start.max(rest.asked.start);
        } else {
            rest.asked.start = rest.asked.start.max(spans.end);
        }
    }

    /// The account of the piece's file; `None` if that is small.
    fn of(&mut self, piece: &Piece, layout: &impl Layout) -> Result<Option<&mut File>, IndexError> {
        let end = piece.file_end();
        let size = piece.place.before.saturating_add(piece.length()).saturating_add(piece.place.behind);
        if size < LARGE_FILE {
            return Ok(None);
        }
        match self.0.iter().rposition(|file| file.end == end) {
            // The latest file is usually the same again.
            Some(at) => {
                let last = self.0.len() - 1;
                self.0[at..=last].rotate_left(1);
            }
            None => {
                let first = layout.end_of(DecodedOffset(end.0.saturating_sub(size) + 1))?.back(1);
                let spans = SpanRange::new(first, layout.end_of(end)?);
                if self.0.len() == FILES {
                    self.0.remove(0);
                }
                self.0.push(File::new(end, spans, layout.region()));
            }
        }
        Ok(self.0.last_mut())
    }
}

impl File {
    fn new(end: DecodedOffset, spans: SpanRange, region: u32) -> Self {
        Self {
            end,
            spans,
            read: 0,
            regions: HashSet::new(),
            of_regions: spans.count().div_ceil(region),
            extent: SpanRange::none_at(spans.start),
            between: 0,
            again: 0,
            last: spans.start,
            open: HashMap::new(),
            open_bytes: 0,
            right: 0,
            rest: None,
        }
    }

    /// Whether it is the first read in its region.
    fn span_read(&mut self, span: SpanId, region: u32) -> bool {
        if let Some(bytes) = self.open.remove(&span) {
            self.open_bytes -= bytes;
            self.right += bytes;
        }
        let is_new = self.regions.insert(span.0.saturating_sub(self.spans.start.0) / region);
        // Threads that read in one direction together are never far apart.
        let apart = self.spans.count() / APART;
        if is_new && span > self.extent.start.forward(apart) && span.forward(apart) < self.extent.end {
            self.between += 1;
        }
        self.again += u32::from(!is_new && span.0.abs_diff(self.last.0) > region);
        let ends = self.spans.count() / ENDS;
        if SpanRange::new(self.spans.start.forward(ends), self.spans.end.back(ends)).contains(span) {
            self.extent = match self.extent.is_empty() {
                true => SpanRange::one(span),
                false => SpanRange::new(self.extent.start.min(span), self.extent.end.max(span.next())),
            };
        }
        (self.read, self.last) = (self.read + 1, span);
        is_new
    }

    /// Whether a reader has read enough of the file, here and there, for all of it to be worth fetching.
    fn is_jumped_about(&self) -> bool {
        let regions = self.regions_read();
        let is_dense = regions >= SOME && regions.saturating_mul(DENSE) >= self.of_regions;
        let is_scattered = self.between.saturating_mul(4) >= regions;
        let is_much = self.read.saturating_mul(DENSE) >= self.spans.count();
        is_dense && is_scattered && (is_much || self.again.saturating_mul(AGAIN) <= regions)
    }

    fn regions_read(&self) -> u32 {
        u32::try_from(self.regions.len()).unwrap_or(u32::MAX)
    }

    /// The next part of the rest, after `bytes` of the blob were read for the first time.
    fn rest_for(&mut self, bytes: u64, layout: &impl Layout) -> Result<Option<Suggestion>, IndexError> {
        // Two at an eighth of the file, ten at a quarter.
        let share = f64::from(self.regions_read()) / f64::from(self.of_regions.max(1));
        let Some(rest) = &mut self.rest else { return Ok(None) };
        let gain = 2.0 + (share - 1.0 / f64::from(DENSE)).max(0.0) * 64.0;
        rest.credit = rest.credit.saturating_add((bytes as f64 * gain) as u64).min(MOST_CREDIT);
        let (asked, extent) = (rest.asked, self.extent);
        if rest.credit < REQUEST || (asked.end >= extent.end && asked.start <= extent.start) {
            return Ok(None);
        }
        let spans = if asked.end < extent.end {
            let spans = layout.within(asked.end, extent.end.0 - asked.end.0, rest.credit)?;
            SpanRange::new(asked.end, spans.end.max(asked.end.next()))
        } else {
            let mut spans = SpanRange::none_at(asked.start);
            while spans.start > extent.start && layout.blob_bytes(spans)? < rest.credit {
                spans.start = spans.start.back(1);
            }
            spans
        };
        rest.credit -= layout.blob_bytes(spans)?.min(rest.credit);
        rest.asked = SpanRange::new(asked.start.min(spans.start), asked.end.max(spans.end));
        Ok(Some(Suggestion { spans, urgency: Urgency::Rest(rest.id) }))
    }
}

/// A smaller file is read soon, or is a program; in bytes.
const LARGE_FILE: u64 = 4 << 20;
/// Limit for files per layer.
const FILES: usize = 32;
/// Bytes of the blob that guesses in a file may be wrong for at first: about two reads with what is around them.
const FIRST: u64 = 1 << 20;
/// Bytes that guesses may be wrong for, for each one that was right. A guess of 256 KiB takes 10 ms of a link of 200 Mbit/s;
/// one that is right saves a round trip and as much again, some 35 ms with a round trip of 20 ms.
const GAIN: u64 = 6;
/// The rest of a file is fetched once one region in this many was read, and at least that many; and if one span in this
/// many was read, too, or at most one read in that many came back to a region.
const DENSE: u32 = 8;
const SOME: u32 = 16;
const AGAIN: u32 = 64;
/// Reads within this share of the file from the first or the last one do not count as jumps.
const APART: u32 = 16;
/// This share of a file at either end holds headers and footers.
const ENDS: u32 = 32;
/// Bytes of the blob that may be suggested at once.
const MOST_CREDIT: u64 = 4 << 20;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::layer::EntryId;
    use crate::predict::event::PlaceInFile;
    use crate::predict::layout::testing::Even;

    const SPAN: u64 = 256 << 10;
    const USUAL: Even = Even { spans: 10_000, bytes: SPAN, region: 1 };
    /// Spans of the file, which begins with span 100.
    const FILE: u32 = 400;

    /// A read of 4 KiB in the middle of a span of the file.
    fn piece(span: u32) -> Piece {
        let before = u64::from(span) * SPAN + 1000;
        let start = DecodedOffset(100 * SPAN + before);
        let place = PlaceInFile { entry: EntryId(1), before, behind: u64::from(FILE) * SPAN - before - 4096 };
        let span = SpanId(100 + span);
        Piece { bytes: start..start + 4096, spans: SpanRange::one(span), place }
    }

    fn read(coverage: &mut Coverage, span: u32) -> Option<SpanRange> {
        let found = coverage.read(&piece(span), &[SpanId(100 + span)], &mut 0, &USUAL).unwrap();
        found.map(|suggestion| suggestion.spans)
    }

    /// The number of reads before the rest of the file is suggested, and the first spans of it.
    fn until_rest(order: impl IntoIterator<Item = u32>) -> Option<(usize, SpanRange)> {
        let mut coverage = Coverage::default();
        order.into_iter().enumerate().find_map(|(reads, span)| Some((reads + 1, read(&mut coverage, span)?)))
    }

    /// Every span of the file once, apart from each other.
    fn jumps() -> impl Iterator<Item = u32> {
        (0..FILE).map(|read| read * 171 % FILE)
    }

    #[test]
    fn an_eighth_read_here_and_there_lets_the_rest_be_fetched() {
        let (reads, first) = until_rest(jumps()).unwrap();
        assert!((FILE / 8..FILE / 7).contains(&(reads as u32)), "{reads}");
        assert!((100..100 + FILE / 10).contains(&first.start.0), "from where its reads begin");
        let backwards = (0..6).flat_map(|round| (0..FILE / 6).map(move |step| FILE - 1 - step * 6 - round));
        assert!(until_rest(backwards).is_some(), "in many rounds");
    }

    #[test]
    fn a_reader_in_one_direction_needs_no_rest() {
        assert_eq!(until_rest(0..FILE), None, "all of it");
        assert_eq!(until_rest((0..FILE).step_by(3)), None, "a column");
        assert_eq!(until_rest((0..FILE).rev().step_by(3)), None, "backwards");
        assert_eq!(until_rest((0..FILE / 3).map(|read| (read * 3) ^ 1)), None, "two threads");
        assert_eq!(until_rest((FILE - 3..FILE).chain((0..FILE - 3).step_by(2))), None, "the tail first");
    }

    /// A number that looks random.
    fn mixed(number: u32) -> u32 {
        let number = (number ^ 0x5bd1_e995).wrapping_mul(0x85eb_ca6b);
        (number ^ number >> 13).wrapping_mul(0xc2b2_ae35) >> 7
    }

    #[test]
    fn lookups_in_small_spans_are_no_reader_of_everything() {
        let fine = Even { spans: 160_000, bytes: SPAN / 16, region: 16 };
        // Samples, one in each region; and rows anywhere.
        let (samples, rows) = (|read| read * 171 % FILE * 16 + 5, |read| mixed(read) % (FILE * 16));
        let until_rest = |place: fn(u32) -> u32| {
            let mut coverage = Coverage::default();
            (0..FILE).find(|read| {
                let fine_span = place(*read);
                let piece = Piece { spans: SpanRange::one(SpanId(1600 + fine_span)), ..piece(fine_span / 16) };
                coverage.read(&piece, &[piece.spans.start], &mut 0, &fine).unwrap().is_some()
            })
        };
        let reads = until_rest(samples).unwrap();
        assert!((FILE / 8 - 1..FILE / 7).contains(&reads), "{reads}");
        assert_eq!(until_rest(rows), None);
    }

    #[test]
    fn few_reads_let_no_rest_be_fetched() {
        assert_eq!(until_rest(jumps().take(FILE as usize / 9)), None);
        assert_eq!(until_rest((0..FILE / 9).map(|read| read * 171 % (FILE / 9))), None, "a part that is read whole");
    }

    #[test]
    fn the_rest_grows_with_what_is_read_and_ends_with_the_reads() {
        let (mut coverage, mut suggested, mut reads) = (Coverage::default(), 0, 0);
        for span in jumps() {
            reads += 1;
            suggested += read(&mut coverage, span).map_or(0, SpanRange::count);
            if reads < FILE / 7 {
                assert!(suggested <= 2 * reads, "{suggested} spans for {reads} reads");
            }
            if suggested >= FILE * 9 / 10 {
                break;
            }
        }
        assert!((FILE * 9 / 10..=FILE).contains(&suggested), "{suggested}: all between its reads, once");
        assert!(reads < FILE / 2, "{reads} reads");
    }

    #[test]
    fn a_reader_that_works_its_way_from_the_end_is_followed() {
        let (mut coverage, mut lowest) = (Coverage::default(), FILE);
        for read_so_far in 0..FILE {
            // Here and there in what it has reached, which grows by two spans with each read.
            let span = FILE - 20 - mixed(read_so_far) % (2 * read_so_far + 20).min(FILE - 20);
            if let Some(suggested) = read(&mut coverage, span) {
                lowest = lowest.min(suggested.start.0 - 100);
                assert!(lowest >= FILE.saturating_sub(2 * read_so_far + 40), "{lowest} after {read_so_far} reads");
            }
        }
        assert!(lowest < FILE / 4, "{lowest}");
    }

    #[test]
    fn what_the_budget_declines_is_suggested_again() {
        let mut coverage = Coverage::default();
        let mut jumps = jumps();
        let first = jumps.find_map(|span| read(&mut coverage, span)).unwrap();
        coverage.declined(StreamId(1), first);
        let again = jumps.find_map(|span| read(&mut coverage, span)).unwrap();
        assert_eq!(again.start, first.start);
    }

    #[test]
    fn guesses_that_nothing_reads_come_to_an_end() {
        let (mut coverage, mut guessed) = (Coverage::default(), 0);
        let around = |coverage: &mut Coverage, span: u32| {
            let piece = piece(span);
            let allowed = coverage.allowance(&piece, &USUAL).unwrap();
            let spans = USUAL.within(piece.spans.end, 5, allowed.min(512 << 10)).unwrap();
            coverage.guessed(&piece, spans, &USUAL).unwrap();
            spans
        };
        for read in 0..20 {
            guessed += around(&mut coverage, read * 10).count();
        }
        assert_eq!(u64::from(guessed) * SPAN, FIRST);
        assert_eq!(read(&mut coverage, 1), None, "a guess that was right");
        assert_eq!(around(&mut coverage, 300).count(), 2, "allows for others");
        coverage.withdraw(SpanRange::new(SpanId(401), SpanId(403)));
        assert_eq!(coverage.0[0].open_bytes, FIRST - SPAN, "if they were made");
    }

    #[test]
    fn small_files_have_no_account() {
        let mut coverage = Coverage::default();
        let large = piece(3);
        let place = PlaceInFile { before: 0, behind: LARGE_FILE - 4097, ..large.place };
        let small = Piece { place, ..large };
        assert_eq!(coverage.allowance(&small, &USUAL).unwrap(), u64::MAX);
        assert!(coverage.0.is_empty());
    }

    #[test]
    fn a_bounded_number_of_files_has_accounts() {
        let mut coverage = Coverage::default();
        for number in 0..100 {
            let mut piece = piece(1);
            piece.place.behind += number;
            coverage.allowance(&piece, &USUAL).unwrap();
        }
        assert_eq!(coverage.0.len(), FILES);
    }
}
