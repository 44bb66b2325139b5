//! Sizes on the command line and in configuration files.

/// The text is not a size.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{0}` is not a size; write it as 20GiB, 500M or 1000000")]
pub struct SizeError(String);

/// Parses a size in bytes such as `20GiB`, `500M` or `1000000`. Units are binary, as in `du` and podman.
///
/// # Errors
/// [`SizeError`]
pub fn parse(text: &str) -> Result<u64, SizeError> {
    let bad = || SizeError(text.to_owned());
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().map_err(|_| bad())?;
    let unit = unit.trim().to_ascii_lowercase();
    let unit = unit.strip_suffix("ib").or_else(|| unit.strip_suffix('b')).unwrap_or(&unit);
    let power = ["", "k", "m", "g", "t"].iter().position(|known| *known == unit).ok_or_else(bad)?;
    let bytes = number * 1024f64.powi(power as i32);
    if bytes.is_finite() && bytes < 9e18 { Ok(bytes as u64) } else { Err(bad()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_they_are_written_elsewhere() {
        for (text, bytes) in [
            ("0", 0),
            ("1000000", 1_000_000),
            ("20GiB", 20 << 30),
            ("500M", 500 << 20),
            ("1.5k", 1536),
            ("3 MB", 3 << 20),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in ["", "G", "1X", "-1", "1e3", "99999999999999T"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
