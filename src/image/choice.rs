//! Selects a layer of an image by its number, counted from 1 at the lowest, or by a prefix of its digest.

use std::fmt::{self, Display};
use std::num::NonZeroU16;
use std::str::FromStr;

use super::plan::Plan;
use crate::content::LayerRef;
use crate::overlay::LayerNo;

/// A layer as a user names it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum LayerChoice {
    /// Its number; the lowest is 1.
    Number(NonZeroU16),
    /// A prefix of the digest of its blob or of its decoded stream, with or without the algorithm.
    Digest(String),
}

/// Why a text is not a valid layer choice.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{0}` is neither the number of a layer, of which the lowest is 1, nor 6 or more digits of its digest")]
pub struct LayerChoiceError(String);

/// Why an image has no matching layer.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NoSuchLayer {
    /// There is no layer with this number.
    #[error("there is no layer {number}: the image has {}", layers(*count))]
    Number {
        /// The number.
        number: NonZeroU16,
        /// The number of layers.
        count: usize,
    },
    /// No digest has this prefix.
    #[error("no layer's digest begins with `{begin}`: the image has {}", layers(*count))]
    Digest {
        /// The prefix.
        begin: String,
        /// The number of layers.
        count: usize,
    },
    /// Several layers have a digest with this prefix.
    #[error("`{begin}` is a prefix of several digests, of the layers {}", listed(numbers))]
    Several {
        /// The prefix.
        begin: String,
        /// Their numbers.
        numbers: Vec<usize>,
    },
}

fn layers(count: usize) -> String {
    match count {
        1 => "1 layer".to_owned(),
        count => format!("{count} layers, of which 1 is the lowest"),
    }
}

fn listed(numbers: &[usize]) -> String {
    numbers.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
}

impl FromStr for LayerChoice {
    type Err = LayerChoiceError;

    fn from_str(text: &str) -> Result<Self, LayerChoiceError> {
        let no_layer = || LayerChoiceError(text.to_owned());
        if text.len() < DIGITS && text.bytes().all(|byte| byte.is_ascii_digit()) {
            return text.parse().map(Self::Number).map_err(|_| no_layer());
        }
        let (algorithm, hex) = text.split_once(':').unwrap_or(("", text));
        let is_hex = hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let is_named = algorithm.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if hex.len() < DIGITS || !is_hex || !is_named {
            return Err(no_layer());
        }
        Ok(Self::Digest(text.to_owned()))
    }
}

impl Display for LayerChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Digest(begin) => begin.fmt(f),
        }
    }
}

impl Plan {
    /// The selected layer.
    ///
    /// # Errors
    /// [`NoSuchLayer`]
    pub fn layer(&self, choice: &LayerChoice) -> Result<LayerNo, NoSuchLayer> {
        let count = self.layers.len();
        match choice {
            LayerChoice::Number(number) if usize::from(number.get()) <= count => Ok(LayerNo(number.get() - 1)),
            LayerChoice::Number(number) => Err(NoSuchLayer::Number { number: *number, count }),
            LayerChoice::Digest(begin) => {
                let found: Vec<_> = (0..).zip(&self.layers).filter(|(_, layer)| begins(layer, begin)).collect();
                match found[..] {
                    [(number, _)] => Ok(LayerNo(number)),
                    [] => Err(NoSuchLayer::Digest { begin: begin.clone(), count }),
                    _ => {
                        let numbers = found.iter().map(|(number, _)| usize::from(*number) + 1).collect();
                        Err(NoSuchLayer::Several { begin: begin.clone(), numbers })
                    }
                }
            }
        }
    }
}

fn begins(layer: &LayerRef, begin: &str) -> bool {
    [&layer.blob.digest, layer.content()].into_iter().any(|digest| match begin.contains(':') {
        true => digest.to_string().starts_with(begin),
        false => digest.hex().starts_with(begin),
    })
}

/// Minimum length of a digest prefix; shorter texts are numbers.
const DIGITS: usize = 6;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_layer_is_a_number_or_the_beginning_of_a_digest() {
        let number = |number| LayerChoice::Number(NonZeroU16::new(number).unwrap());
        assert_eq!("1".parse(), Ok(number(1)));
        assert_eq!("999".parse(), Ok(number(999)));
        for digest in ["012345", "abcdef0", "sha256:abcdef", "sha512:000000"] {
            assert_eq!(digest.parse(), Ok(LayerChoice::Digest(digest.to_owned())));
        }
        for wrong in ["0", "", "-1", "+1", "99999", "abc", "sha256:", "sha256:abc", "ABCDEF", "layer1", "../abcdef"] {
            let error = wrong.parse::<LayerChoice>().unwrap_err().to_string();
            assert!(error.contains(&format!("`{wrong}`")), "{error}");
        }
    }
}
