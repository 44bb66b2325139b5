//! What a process has to know that shows a store after another one did: which numbers that gave, and its lists.
//!
//! The kernel asks the next process for nodes by the numbers that the one before had for them. A layer that got another
//! number would show files of one layer as those of another, so numbers are kept before anything is shown by them.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::layer::Timestamp;

/// Keeps it for the next process.
pub type Keep = Arc<dyn Fn(&Remembered) -> io::Result<()> + Send + Sync>;

/// Numbers of layers and images, by their ids. None is given twice, so those that are gone leave gaps.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Numbers {
    layers: BTreeMap<String, u32>,
    images: BTreeMap<String, u32>,
    /// How many have been given.
    layers_given: u32,
    images_given: u32,
}

impl Numbers {
    /// That of a layer: from 1 on.
    pub(super) fn of_layer(&mut self, id: &str) -> u32 {
        number_of(&mut self.layers, &mut self.layers_given, id) + 1
    }

    /// That of an image: from 0 on.
    pub(super) fn of_image(&mut self, id: &str) -> u32 {
        number_of(&mut self.images, &mut self.images_given, id)
    }
}

fn number_of(known: &mut BTreeMap<String, u32>, given: &mut u32, id: &str) -> u32 {
    if let Some(number) = known.get(id) {
        return *number;
    }
    let number = *given;
    *given += 1;
    known.insert(id.to_owned(), number);
    number
}

/// What one process knew that showed a store.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Remembered {
    /// Of this format.
    version: u32,
    numbers: Numbers,
    generation: u64,
    /// When the lists changed: seconds since 1970, and nanoseconds.
    changed: (i64, u32),
    images: String,
    layers: String,
}

impl Remembered {
    pub(super) fn new(numbers: Numbers, generation: u64, changed: Timestamp, [images, layers]: [String; 2]) -> Self {
        Self { version: VERSION, numbers, generation, changed: (changed.seconds, changed.nanos), images, layers }
    }

    /// Whether it is of a format that this program knows.
    pub fn is_known(&self) -> bool {
        self.version == VERSION
    }

    /// Numbers, generation of the lists, when they changed, and their texts.
    pub(super) fn parts(self) -> (Numbers, u64, Timestamp, [String; 2]) {
        let changed = Timestamp { seconds: self.changed.0, nanos: self.changed.1 };
        (self.numbers, self.generation, changed, [self.images, self.layers])
    }
}

const VERSION: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_given_once_and_stays() {
        let mut numbers = Numbers::default();
        assert_eq!([numbers.of_layer("a"), numbers.of_layer("b"), numbers.of_layer("a")], [1, 2, 1]);
        assert_eq!([numbers.of_image("a"), numbers.of_image("c"), numbers.of_image("a")], [0, 1, 0]);
        numbers.layers.remove("b");
        assert_eq!(numbers.of_layer("d"), 3, "that of one that is gone is not given again");
    }
}
