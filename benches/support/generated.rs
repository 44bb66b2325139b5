//! A layer-like stream of bytes for benchmarks: the same each time, and as hard to decode as real ones.

/// Something like a tar: true headers, source text, tables of numbers, a little noise.
pub(super) fn tar(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |bound: usize| {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    };
    let letters =
        |random: &mut dyn FnMut(usize) -> usize| char::from(b"etaoinshrdlucmfwypvbgk_"[random(23).min(random(23))]);
    let words: Vec<String> = (0..8000).map(|i| (0..2 + i % 9).map(|_| letters(&mut random)).collect()).collect();
    let mut stream = Vec::with_capacity(length + (1 << 20));
    while stream.len() < length {
        let length = 512 * (1 + random(64) * random(8));
        let mut header = tar::Header::new_ustar();
        header.set_path(format!("usr/lib/{}/{}.py", words[random(8000)], words[random(8000)])).expect("a short path");
        header.set_size(length as u64);
        header.set_mode(0o644);
        header.set_cksum();
        stream.extend(header.as_bytes());
        let end = stream.len() + length;
        let kind = random(10);
        while stream.len() < end {
            match kind {
                0..5 => {
                    stream.extend(words[random(8000).min(random(8000)).min(random(8000))].as_bytes());
                    stream.extend([" ", " ", "(", "):\n    ", ", ", " = "][random(6)].as_bytes());
                }
                5..9 => stream.extend((random(1 << 14) as u32 * [1, 1, 16, 0][random(4)]).to_le_bytes()),
                _ => stream.push(random(256) as u8),
            }
        }
        stream.truncate(end);
    }
    stream
}
