//! Huffman-coded literals (RFC 8878, 4.2).

use super::Unreadable;
use super::bits::BackwardBits;
use super::fse::Shares;

/// What decodes literals: by the next [`LOG`] bits, the symbol and the length of its code.
pub(super) struct Codes {
    described: Vec<u8>,
    codes: Box<[[u8; 2]; 1 << LOG]>,
}

/// The length of the description of codes that `bytes` begin with.
pub(super) fn description_length(bytes: &[u8]) -> Option<usize> {
    let first = usize::from(*bytes.first()?);
    let length = if first < 128 { 1 + first } else { 1 + (first - 127).div_ceil(2) };
    (length <= bytes.len()).then_some(length)
}

impl Codes {
    /// The codes that are described by `bytes`, all of them.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, Unreadable> {
        let (&first, rest) = bytes.split_first().ok_or(Unreadable("no Huffman codes"))?;
        let mut weights = if first < 128 {
            compressed_weights(rest)?
        } else {
            let count = usize::from(first) - 127;
            rest.iter().flat_map(|byte| [byte >> 4, byte & 15]).take(count).collect()
        };
        if weights.len() > 255 || weights.iter().any(|weight| u32::from(*weight) > LOG) {
            return Err(Unreadable("Huffman codes that are too long"));
        }
        let share = |weight: &u8| if *weight == 0 { 0 } else { 1_u32 << (weight - 1) };
        let sum: u32 = weights.iter().map(share).sum();
        if sum == 0 || sum >= 1 << LOG {
            return Err(Unreadable("Huffman codes that are too long"));
        }
        // The last symbol has what is left up to a power of two.
        let log = sum.ilog2() + 1;
        let left = (1 << log) - sum;
        if !left.is_power_of_two() {
            return Err(Unreadable("Huffman codes that do not add up"));
        }
        weights.push(left.ilog2() as u8 + 1);
        let mut table = Box::new([[0; 2]; 1 << LOG]);
        let mut at = 0;
        for weight in 1..=log as u8 {
            for (symbol, _) in weights.iter().enumerate().filter(|(_, own)| **own == weight) {
                let entries = 1_usize << (u32::from(weight) - 1 + LOG - log);
                let bits = log as u8 + 1 - weight;
                table
                    .get_mut(at..at + entries)
                    .ok_or(Unreadable("Huffman codes that do not add up"))?
                    .fill([symbol as u8, bits]);
                at += entries;
            }
        }
        Ok(Self { described: bytes.to_vec(), codes: table })
    }

    /// Whether these are the codes described so.
    pub(super) fn are(&self, described: &[u8]) -> bool {
        self.described == described
    }

    /// Decodes one stream.
    pub(super) fn one(&self, stream: &[u8], out: &mut [u8]) -> Result<(), Unreadable> {
        let mut bits = BackwardBits::new(stream)?;
        self.rest(&mut bits, out)
    }

    /// Decodes four streams, behind the table of the lengths of the first three; each but the last makes a quarter,
    /// rounded up.
    pub(super) fn four(&self, streams: &[u8], out: &mut [u8]) -> Result<(), Unreadable> {
        let short = Unreadable("literals that are cut short");
        let (lengths, mut rest) = streams.split_first_chunk::<6>().ok_or(short)?;
        let mut bits = [None; 4];
        for (number, bits) in bits.iter_mut().enumerate() {
            let length = match lengths.get(2 * number..2 * number + 2) {
                Some(length) => usize::from(u16::from_le_bytes([length[0], length[1]])),
                None => rest.len(),
            };
            let (stream, later) = rest.split_at_checked(length).ok_or(short)?;
            *bits = Some(BackwardBits::new(stream)?);
            rest = later;
        }
        let [Some(mut a), Some(mut b), Some(mut c), Some(mut d)] = bits else { return Err(short) };
        let quarter = out.len().div_ceil(4);
        let (out_a, out) = out.split_at_mut_checked(quarter).ok_or(short)?;
        let (out_b, out) = out.split_at_mut_checked(quarter).ok_or(short)?;
        let (out_c, out_d) = out.split_at_mut_checked(quarter).ok_or(short)?;
        let together = out_d.len() / AT_ONCE;
        {
            let outs = out_a.chunks_exact_mut(AT_ONCE).zip(out_b.chunks_exact_mut(AT_ONCE));
            let more = out_c.chunks_exact_mut(AT_ONCE).zip(out_d.chunks_exact_mut(AT_ONCE));
            for ((to_a, to_b), (to_c, to_d)) in outs.zip(more) {
                a.refill();
                b.refill();
                c.refill();
                d.refill();
                for at in 0..AT_ONCE {
                    to_a[at] = self.next(&mut a);
                    to_b[at] = self.next(&mut b);
                    to_c[at] = self.next(&mut c);
                    to_d[at] = self.next(&mut d);
                }
            }
        }
        let done = together * AT_ONCE;
        for (mut bits, out) in [(a, out_a), (b, out_b), (c, out_c), (d, out_d)] {
            self.rest(&mut bits, &mut out[done..])?;
        }
        Ok(())
    }

    fn rest(&self, bits: &mut BackwardBits<'_>, out: &mut [u8]) -> Result<(), Unreadable> {
        for some in out.chunks_mut(AT_ONCE) {
            bits.refill();
            some.iter_mut().for_each(|byte| *byte = self.next(bits));
        }
        if bits.overrun() { Err(Unreadable("literals that are cut short")) } else { Ok(()) }
    }

    #[inline(always)]
    fn next(&self, bits: &mut BackwardBits<'_>) -> u8 {
        let [symbol, length] = self.codes[bits.peek(LOG) as usize & ((1 << LOG) - 1)];
        bits.skip(u32::from(length));
        symbol
    }
}

/// Weights by two FSE states that take turns, until the bits are used up.
fn compressed_weights(bytes: &[u8]) -> Result<Vec<u8>, Unreadable> {
    const WEIGHTS_LOG: u32 = 6;
    let (shares, used) = Shares::read(bytes, 255, WEIGHTS_LOG)?;
    let mut table = [(0, 0, 0); 1 << WEIGHTS_LOG];
    shares.states(|state, symbol, bits, base| table[state] = (symbol, bits, base));
    let mut bits = BackwardBits::new(&bytes[used..])?;
    let mut states = [bits.take(shares.log) as usize, bits.take(shares.log) as usize];
    let mut weights = Vec::new();
    while weights.len() < 255 {
        let (symbol, length, base) = table[states[0]];
        weights.push(symbol);
        bits.refill();
        if !bits.has(u32::from(length)) {
            weights.push(table[states[1]].0);
            return Ok(weights);
        }
        states = [states[1], usize::from(base) + bits.take(u32::from(length)) as usize];
    }
    Err(Unreadable("too many Huffman codes"))
}

/// The longest code that libzstd takes; RFC 8878 allows 11.
const LOG: u32 = 12;
/// Codes for which one refill suffices.
const AT_ONCE: usize = 4;
