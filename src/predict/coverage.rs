//! Coverage: what readers have read of each large file, and what guesses about it were worth.
//!
//! Readers of data files jump: a database looks up a row, a shuffled training run takes one sample after another. What
//! lies around such a read is worth fetching only if it is read, too, and that differs by file and program. So each
//! large file has an account:
//!
//! - *Guesses around small reads* may be wrong for 384 KiB of the blob. Where much was read nearby, as around the pages of an
//!   index, they may be wrong for twice what was right; elsewhere, as around rows, what is right there allows for no more.
//! - *Guesses around large reads* may be wrong for 1 MiB, and for six bytes for each one that was read since. Below one byte
//!   in seven, they save little time for the bytes that they cost.
//! - *The rest of the file* is fetched once a reader has jumped about in it and has read enough of it: four times as much
//!   as is read, and more the more of the file was read; what lies between its reads, so that a reader that works its way
//!   from one end is followed, and in the end the file's ends. One that stops ends that.
//!
//! How much is enough, is a bet on what the reader is:
//!
//! | reads | who reads so | bet after |
//! |---|---|---|
//! | of 128 KiB and more | a cursor in an order that is not the file's, with the kernel's readahead | 1/16 of the file |
//! | at multiples of 128 KiB or more | who takes samples: records of a fixed size | 1/12 |
//! | never where something was read, although by chance three would have been | who takes samples | 1/12 |
//! | others | lookups: they come back to an index, and to rows by chance | 1/6, in bytes of the blob |
//!
//! A reader that goes through a file in one direction reads nothing that lies behind it, however much it leaves out. So only
//! reads between others count as jumps. What is read of a file is counted in regions of 256 KiB, the size of ordinary spans;
//! where spans are smaller, lookups fetch little, and the rest of the file would cost much more than they do.
//!
//! Small reads at random are close behind each other by chance, so no window follows them ([`Coverage::is_at_random`]).

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::ops::Range;

use super::event::{LARGE, LARGE_FILE, Piece, SMALL, StreamId, Suggestion, Urgency};
use super::layout::{Layout, REGION, REQUEST};
use crate::layer::IndexError;
use crate::offsets::DecodedOffset;
use crate::span::{SpanId, SpanRange};

/// Accounts of large files, the latest last.
#[derive(Debug, Default)]
pub(super) struct Coverage(Vec<File>);

/// What is known of the reads of one large file.
#[derive(Debug)]
struct File {
    /// Its decoded bytes; their end identifies it.
    bytes: Range<DecodedOffset>,
    spans: SpanRange,
    /// Bytes of the blob that hold it, and those of them whose spans were read.
    blob: u64,
    blob_read: u64,
    /// Spans that were read.
    read: BTreeSet<SpanId>,
    /// Regions of which something was read, by number from the start of the file.
    regions: HashSet<u32>,
    /// Behind the last region.
    of_regions: u32,
    /// From the first to the last region that was read, but for the file's ends: headers and footers are read first.
    extent: Range<u32>,
    /// Number of regions that were read between others.
    between: u32,
    reads: Reads,
    /// Spans that were fetched on a guess and not read since, with their bytes in the blob.
    open: HashMap<SpanId, Guess>,
    /// Bytes of these, and of those around small reads.
    open_bytes: u64,
    open_small: u64,
    /// Bytes of the blob that were fetched on a guess and read since.
    right: u64,
    rest: Option<Rest>,
}

/// A span that was fetched on a guess.
#[derive(Clone, Copy, Debug)]
struct Guess {
    bytes: u64,
    /// Whether the read was a small one, not at the head of the file.
    is_small: bool,
}

/// How a file is read.
#[derive(Debug, Default)]
struct Reads {
    all: u32,
    /// Those of [`LARGE`] bytes or more.
    large: u32,
    /// Those that did not begin where, or little behind where, one of the last ones had ended.
    strays: u32,
    /// Where the last ones ended, the latest last.
    ends: VecDeque<DecodedOffset>,
    /// The region of the last one.
    last: u32,
    /// Those that were not near the one before, and those of them in regions of which something had been read.
    jumps: u32,
    returns: u32,
    /// Where the first of the small ones began in the file, and what the distances of the others from it are multiples of.
    first: Option<u64>,
    stride: u64,
}

/// What the reads of a file look like.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Manner {
    /// Large reads: who walks through a mapped file in another order, where the kernel reads around each page.
    Large,
    /// Others, at the heads of large records, or none of them where something was read before, although that would have
    /// happened by chance.
    Samples,
    /// Others anywhere.
    Lookups,
}

/// Fetching the rest of a file.
#[derive(Debug)]
struct Rest {
    id: StreamId,
    /// What was suggested so far; grows at both ends.
    asked: SpanRange,
    /// Bytes of the blob that may be suggested.
    credit: u64,
    /// The share of the file's regions that was read before it began.
    since: f64,
}

impl Coverage {
    /// Records a read, with the spans of it that are read for the first time; returns what to fetch of the rest of the file.
    /// `streams` counts the streams of the layer.
    pub(super) fn read(
        &mut self,
        piece: &Piece,
        (first, waiting): (&[SpanId], u32),
        streams: &mut u64,
        layout: &impl Layout,
    ) -> Result<Option<Suggestion>, IndexError> {
        let Some(file) = self.of(piece, layout)? else { return Ok(None) };
        let new = file.read(piece, (first, waiting), layout)?;
        if new == 0 {
            return Ok(None);
        }
        if file.rest.is_none() && file.is_jumped_about() {
            *streams += 1;
            let start = layout.end_of(file.start_of(file.extent.start) + 1)?.back(1);
            let asked = SpanRange::none_at(start);
            file.rest = Some(Rest { id: StreamId(*streams), asked, credit: 0, since: file.share() });
        }
        file.rest_for(new, layout)
    }

    /// Bytes of the blob that may be fetched around a piece on a guess; no limit for small files.
    pub(super) fn allowance(&mut self, piece: &Piece, layout: &impl Layout) -> Result<u64, IndexError> {
        let region = layout.region_at(piece.spans.start)?;
        Ok(self.of(piece, layout)?.map_or(u64::MAX, |file| file.allowance(piece, region)))
    }

    /// Whether a piece is one of many small ones that are read at random, so that one behind another is chance.
    pub(super) fn is_at_random(&mut self, piece: &Piece, layout: &impl Layout) -> Result<bool, IndexError> {
        Ok(self.of(piece, layout)?.is_some_and(|file| file.is_at_random(piece)))
    }

    /// Records spans that are fetched around a piece on a guess.
    pub(super) fn guessed(&mut self, piece: &Piece, spans: SpanRange, layout: &impl Layout) -> Result<(), IndexError> {
        let Some(file) = self.of(piece, layout)? else { return Ok(()) };
        for span in spans.iter() {
            file.close(span);
            let bytes = layout.blob_bytes(SpanRange::one(span))?;
            let is_small = piece.is_small_inside();
            file.open_bytes += bytes;
            file.open_small += if is_small { bytes } else { 0 };
            file.open.insert(span, Guess { bytes, is_small });
        }
        Ok(())
    }

    /// Records that spans suggested around a read are not fetched.
    pub(super) fn withdraw(&mut self, spans: SpanRange) {
        for file in &mut self.0 {
            for span in spans.iter() {
                file.close(span);
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
        if piece.file_size() < LARGE_FILE {
            return Ok(None);
        }
        let end = piece.file_end();
        match self.0.iter().rposition(|file| file.bytes.end == end) {
            // The latest file is usually the same again.
            Some(at) => {
                let last = self.0.len() - 1;
                self.0[at..=last].rotate_left(1);
            }
            None => {
                if self.0.len() == FILES {
                    self.0.remove(0);
                }
                let start = DecodedOffset(end.0.saturating_sub(piece.file_size()));
                self.0.push(File::new(start..end, layout)?);
            }
        }
        Ok(self.0.last_mut())
    }
}

impl File {
    fn new(bytes: Range<DecodedOffset>, layout: &impl Layout) -> Result<Self, IndexError> {
        let spans = SpanRange::new(layout.end_of(bytes.start + 1)?.back(1), layout.end_of(bytes.end)?);
        Ok(Self {
            spans,
            blob: layout.blob_bytes(spans)?,
            blob_read: 0,
            read: BTreeSet::new(),
            regions: HashSet::new(),
            of_regions: u32::try_from((bytes.end - bytes.start).div_ceil(REGION)).unwrap_or(u32::MAX),
            extent: 0..0,
            between: 0,
            reads: Reads::default(),
            open: HashMap::new(),
            open_bytes: 0,
            open_small: 0,
            right: 0,
            rest: None,
            bytes,
        })
    }

    /// The number of regions that are read for the first time.
    fn read(
        &mut self,
        piece: &Piece,
        (first, waiting): (&[SpanId], u32),
        layout: &impl Layout,
    ) -> Result<u32, IndexError> {
        let region = |at: u64| u32::try_from(at.saturating_sub(self.bytes.start.0) / REGION).unwrap_or(u32::MAX);
        let piece_regions = region(piece.bytes.start.0)..=region(piece.bytes.end.0.saturating_sub(1));
        let reads = &mut self.reads;
        reads.all += 1;
        reads.large += u32::from(piece.length() >= LARGE);
        if piece.length() <= SMALL {
            let distance = reads.first.get_or_insert(piece.place.before).abs_diff(piece.place.before);
            reads.stride = common_divisor(reads.stride, distance);
        }
        let start = piece.bytes.start;
        let follows = |end: &DecodedOffset| (*end..=*end + LITTLE).contains(&start);
        reads.strays += u32::from(!reads.ends.iter().any(follows));
        if reads.ends.len() == READERS {
            reads.ends.pop_front();
        }
        reads.ends.push_back(piece.bytes.end);
        if piece_regions.start().abs_diff(reads.last) > 1 {
            reads.jumps += 1;
            reads.returns += u32::from(self.regions.contains(piece_regions.start()));
        }
        reads.last = *piece_regions.start();
        for span in first {
            self.right += self.close(*span);
            if self.read.insert(*span) {
                self.blob_read += layout.blob_bytes(SpanRange::one(*span))?;
            }
        }
        // What a profile covers counts for nothing else.
        let mut new = 0;
        for region in piece_regions.filter(|_| !first.is_empty()) {
            new += u32::from(self.region_read(region, waiting <= ALONE));
        }
        Ok(new)
    }

    /// Whether it is read for the first time.
    fn region_read(&mut self, region: u32, is_alone: bool) -> bool {
        if !self.regions.insert(region) {
            return false;
        }
        // Threads that read in one direction together are never far apart.
        let (all, Range { start, end }) = (self.of_regions, self.extent.clone());
        let apart = all / APART;
        let is_between = region > start.saturating_add(apart) && region.saturating_add(apart) < end;
        self.between += u32::from(is_between && is_alone);
        let ends = all / ENDS;
        if (ends..all - ends).contains(&region) {
            self.extent = if start == end { region..region + 1 } else { start.min(region)..end.max(region + 1) };
        }
        true
    }

    /// Bytes of the blob that may be fetched around a piece on a guess.
    fn allowance(&self, piece: &Piece, region: u32) -> u64 {
        // The head of a file is often followed by more of it.
        if !piece.is_small_inside() {
            return (FIRST + GAIN * self.right).saturating_sub(self.open_bytes);
        }
        let gain = if self.is_crowded(piece.spans.start, region) { GAIN_CROWDED } else { 0 };
        (FIRST_SMALL + gain * self.right).saturating_sub(self.open_small)
    }

    /// Forgets a guess; its bytes.
    fn close(&mut self, span: SpanId) -> u64 {
        let Some(Guess { bytes, is_small }) = self.open.remove(&span) else { return 0 };
        self.open_bytes -= bytes;
        self.open_small -= if is_small { bytes } else { 0 };
        bytes
    }

    /// Whether much was read near a span.
    fn is_crowded(&self, span: SpanId, region: u32) -> bool {
        let near = self.read.range(span.back(NEAR * region)..span.forward((NEAR + 1) * region)).count();
        near as u64 >= u64::from(CROWD) * u64::from(region)
    }

    fn is_at_random(&self, piece: &Piece) -> bool {
        let Reads { all, strays, .. } = self.reads;
        piece.length() <= SMALL && strays >= AT_RANDOM && strays.saturating_mul(2) >= all
    }

    fn manner(&self) -> Manner {
        let Reads { all, large, jumps, returns, stride, .. } = self.reads;
        // As often would reads of random places return.
        let by_chance = f64::from(jumps).powi(2) / f64::from(self.of_regions.max(1)) / 2.0;
        if large.saturating_mul(2) >= all {
            Manner::Large
        } else if stride >= RECORD || by_chance >= BY_CHANCE && f64::from(returns) * 4.0 <= by_chance {
            Manner::Samples
        } else {
            Manner::Lookups
        }
    }

    /// Whether a reader has read enough of the file, here and there, for all of it to be worth fetching.
    fn is_jumped_about(&self) -> bool {
        let regions = self.regions.len() as u64;
        let is_dense = match self.manner() {
            Manner::Large => regions * DENSE_LARGE >= u64::from(self.of_regions),
            Manner::Samples => regions * DENSE_SAMPLES >= u64::from(self.of_regions),
            Manner::Lookups => self.blob_read.saturating_mul(DENSE_LOOKUPS) >= self.blob,
        };
        is_dense && regions >= SOME && u64::from(self.between) * BETWEEN >= regions
    }

    /// The share of its regions of which something was read.
    fn share(&self) -> f64 {
        self.regions.len() as f64 / f64::from(self.of_regions.max(1))
    }

    /// Where a region begins; the end of the file if that is behind it.
    fn start_of(&self, region: u32) -> DecodedOffset {
        self.bytes.end.min(self.bytes.start + u64::from(region) * REGION)
    }

    /// The next part of the rest, after `new` regions were read for the first time.
    fn rest_for(&mut self, new: u32, layout: &impl Layout) -> Result<Option<Suggestion>, IndexError> {
        let share = self.share();
        let extent = if share >= MOST {
            self.spans
        } else {
            let start = layout.end_of(self.start_of(self.extent.start) + 1)?.back(1);
            SpanRange::new(start, layout.end_of(self.start_of(self.extent.end))?)
        };
        let of_region = self.blob / u64::from(self.of_regions.max(1));
        let Some(rest) = &mut self.rest else { return Ok(None) };
        let gain = GAIN_OF_REST + (share - rest.since).max(0.0) * 64.0;
        let more = (u64::from(new) * of_region) as f64 * gain;
        rest.credit = rest.credit.saturating_add(more as u64).min(MOST_CREDIT);
        let asked = rest.asked;
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

/// Euclid's.
fn common_divisor(one: u64, other: u64) -> u64 {
    if other == 0 { one } else { common_divisor(other, one % other) }
}

/// Limit for files per layer.
const FILES: usize = 32;
/// Bytes of the blob that guesses around large reads may be wrong for at first: about two reads with what is around them.
const FIRST: u64 = 1 << 20;
/// Bytes that they may be wrong for, for each one that was right. A guess of 256 KiB takes 10 ms of a link of 200 Mbit/s;
/// one that is right saves a round trip and as much again, some 35 ms with a round trip of 20 ms.
const GAIN: u64 = 6;
/// The same around smaller reads, and where much was read near them.
const FIRST_SMALL: u64 = 384 << 10;
const GAIN_CROWDED: u64 = 2;
/// After so many strays, if they are half of the reads, small ones are at random.
const AT_RANDOM: u32 = 8;
/// How many of the last reads one may follow, and how far behind them.
const READERS: usize = 16;
const LITTLE: u64 = 16 << 10;
/// Much near a read: of so many regions before and behind it, and its own.
const NEAR: u32 = 4;
const CROWD: u32 = 4;
/// The rest of a file is fetched once one region in this many was read, and at least so many.
const DENSE_LARGE: u64 = 16;
const DENSE_SAMPLES: u64 = 12;
const SOME: u64 = 8;
/// The same for lookups, in bytes of the blob.
const DENSE_LOOKUPS: u64 = 6;
/// The least size of a record whose head is a sample.
const RECORD: u64 = REGION / 2;
/// One in twenty who read at random return as seldom as never where this many returns are expected.
const BY_CHANCE: f64 = 3.0;
/// And if one read in this many was between others.
const BETWEEN: u64 = 6;
/// Not counted are reads beside others that wait: many at a time use the link already.
const ALONE: u32 = 3;
/// Reads within this share of the file from the first or the last one do not count as jumps.
const APART: u32 = 16;
/// This share of a file at either end holds headers and footers.
const ENDS: u32 = 32;
/// The share of the file that is read when its ends are fetched, too.
const MOST: f64 = 0.5;
/// How many regions are fetched for each one that is read, at first.
const GAIN_OF_REST: f64 = 4.0;
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

    /// A read of 4 KiB somewhere in a span of the file.
    fn piece(span: u32) -> Piece {
        piece_at(span, 4096 * u64::from(1 + span * 7 % 60))
    }

    fn piece_at(span: u32, skip: u64) -> Piece {
        let before = u64::from(span) * SPAN + skip;
        let start = DecodedOffset(100 * SPAN + before);
        let place = PlaceInFile { entry: EntryId(1), before, behind: u64::from(FILE) * SPAN - before - 4096 };
        let span = SpanId(100 + span);
        Piece { bytes: start..start + 4096, spans: SpanRange::one(span), place }
    }

    fn read(coverage: &mut Coverage, span: u32) -> Option<SpanRange> {
        let found = coverage.read(&piece(span), (&[SpanId(100 + span)], 1), &mut 0, &USUAL).unwrap();
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
    fn samples_that_never_come_back_let_the_rest_be_fetched() {
        let (reads, first) = until_rest(jumps()).unwrap();
        // Three of as many at random would have come back.
        assert!((47..=51).contains(&reads), "{reads}");
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

    /// As [`piece`], of two whole spans.
    fn large_piece(span: u32) -> Piece {
        let piece = piece_at(span, 0);
        let place = PlaceInFile { behind: (piece.place.behind + 4096).saturating_sub(LARGE), ..piece.place };
        let spans = SpanRange::new(piece.spans.start, piece.spans.start.forward(2));
        Piece { bytes: piece.bytes.start..piece.bytes.start + LARGE, spans, place }
    }

    #[test]
    fn the_rest_is_fetched_sooner_for_large_reads_than_for_lookups() {
        let until_rest = |piece: fn(u32) -> Piece, order: &mut dyn Iterator<Item = u32>| {
            let mut coverage = Coverage::default();
            let mut reads = order.map(piece);
            let rest = reads
                .position(|piece| coverage.read(&piece, (&[piece.spans.start], 1), &mut 0, &USUAL).unwrap().is_some());
            rest.unwrap() as u32
        };
        let large = until_rest(large_piece, &mut jumps());
        assert!((FILE / 2 / 17..FILE / 2 / 14).contains(&large), "{large}");
        // An index, and rows.
        let heads = until_rest(|span| piece_at(span, 1000), &mut jumps());
        assert!((FILE / 13..FILE / 11).contains(&heads), "{heads}: heads of records");
        let lookups = until_rest(piece, &mut jumps().flat_map(|row| [390 + row % 7, row]));
        assert!((FILE / 7..FILE / 3).contains(&lookups), "{lookups}");
    }

    #[test]
    fn small_reads_are_at_random_unless_they_follow_each_other() {
        let mut coverage = Coverage::default();
        let is_at_random = |coverage: &mut Coverage, span: u32| {
            read(coverage, span);
            coverage.is_at_random(&piece(span), &USUAL).unwrap()
        };
        let found: Vec<_> = jumps().take(20).map(|span| is_at_random(&mut coverage, span)).collect();
        assert!(!found[5] && found[19], "{found:?}");
        assert!(!coverage.is_at_random(&large_piece(7), &USUAL).unwrap());
        let mut coverage = Coverage::default();
        let mut piece = piece(3);
        for _ in 0..100 {
            coverage.read(&piece, (&[], 1), &mut 0, &USUAL).unwrap();
            piece.bytes = piece.bytes.end..piece.bytes.end + 4096;
            piece.place =
                PlaceInFile { before: piece.place.before + 4096, behind: piece.place.behind - 4096, ..piece.place };
        }
        assert!(!coverage.is_at_random(&piece, &USUAL).unwrap());
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
                coverage.read(&piece, (&[piece.spans.start], 1), &mut 0, &fine).unwrap().is_some()
            })
        };
        let reads = until_rest(samples).unwrap();
        assert!((47..=51).contains(&reads), "{reads}");
        assert_eq!(until_rest(rows), None);
    }

    #[test]
    fn few_reads_let_no_rest_be_fetched() {
        assert_eq!(until_rest(jumps().take(FILE as usize / 17)), None);
        assert_eq!(until_rest((0..FILE / 9).map(|read| read * 171 % (FILE / 9))), None, "a part that is read whole");
    }

    #[test]
    fn the_rest_grows_with_what_is_read_and_ends_with_the_reads() {
        let (mut coverage, mut suggested, mut reads) = (Coverage::default(), 0, 0);
        for span in jumps() {
            reads += 1;
            suggested += read(&mut coverage, span).map_or(0, SpanRange::count);
            if reads < FILE / 10 {
                assert!(suggested <= 4 * reads, "{suggested} spans for {reads} reads");
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
            let Some(suggested) = read(&mut coverage, span) else { continue };
            if coverage.0[0].share() < MOST {
                lowest = lowest.min(suggested.start.0 - 100);
                assert!(lowest >= FILE.saturating_sub(2 * read_so_far + 40), "{lowest} after {read_so_far} reads");
            }
        }
        assert!(lowest < FILE * 3 / 4, "{lowest}");
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
        assert_eq!(u64::from(guessed), FIRST_SMALL / SPAN);
        assert_eq!(read(&mut coverage, 1), None, "a guess that was right");
        assert_eq!(around(&mut coverage, 300).count(), 1, "takes the place of one that was not");
        coverage.withdraw(SpanRange::one(SpanId(401)));
        assert_eq!(coverage.0[0].open_bytes, 0, "if it was made");
    }

    #[test]
    fn guesses_that_were_right_allow_for_others_where_much_is_read() {
        let mut coverage = Coverage::default();
        coverage.guessed(&piece(380), SpanRange::new(SpanId(480), SpanId(486)), &USUAL).unwrap();
        for span in [380, 382, 384] {
            read(&mut coverage, span);
        }
        assert_eq!(coverage.allowance(&piece(383), &USUAL).unwrap(), 0, "three near it");
        read(&mut coverage, 381);
        // Four were right, two are open.
        assert_eq!(coverage.allowance(&piece(383), &USUAL).unwrap(), FIRST_SMALL + 2 * 4 * SPAN - 2 * SPAN);
        assert_eq!(coverage.allowance(&piece(7), &USUAL).unwrap(), 0, "elsewhere");
        assert_eq!(
            coverage.allowance(&large_piece(7), &USUAL).unwrap(),
            FIRST + 6 * 4 * SPAN - 2 * SPAN,
            "large reads"
        );
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
