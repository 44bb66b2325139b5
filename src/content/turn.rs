//! Turns: whose layer the link serves first.
//!
//! Several layers stream in at a time and share one link. When somebody waits for one of them, what the
//! others receive meanwhile is taken from it. So a first pass that nobody waits for takes no more of its
//! stream while one that somebody waits for could use the bytes: the sender notices by itself, as TCP's
//! window closes. One whose decoder cannot keep up anyway, or whose server has fallen silent, holds up
//! nobody.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// The first passes that share a link.
#[derive(Debug)]
pub struct Turns(watch::Sender<Urgent>);

/// One layer's place among them.
#[derive(Debug)]
pub struct Turn {
    turns: Arc<Turns>,
    urgent: AtomicBool,
}

/// What the urgent ones are at.
#[derive(Clone, Copy, Debug)]
struct Urgent {
    /// How many of them could use more bytes.
    hungry: usize,
    /// When one of them last got some, or began.
    fed: Instant,
}

/// A layer's stream being taken, piece by piece.
pub(super) struct Taking<'a> {
    turn: &'a Turn,
    hungry: bool,
}

impl Turns {
    /// A link that nobody uses yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Self(watch::Sender::new(Urgent { hungry: 0, fed: Instant::now() })))
    }
}

impl Turn {
    /// One more layer, which nobody waits for.
    pub fn new(turns: &Arc<Turns>) -> Self {
        Self { turns: Arc::clone(turns), urgent: AtomicBool::new(false) }
    }

    /// Somebody waits for this layer now, or nobody does any more.
    pub fn set_urgent(&self, urgent: bool) {
        if self.urgent.swap(urgent, Ordering::Relaxed) != urgent {
            // It may be waiting for its turn.
            self.turns.0.send_modify(|_| {});
        }
    }

    /// Whether somebody waits for this layer.
    pub fn is_urgent(&self) -> bool {
        self.urgent.load(Ordering::Relaxed)
    }

    pub(super) fn take(&self) -> Taking<'_> {
        Taking { turn: self, hungry: false }
    }
}

impl Taking<'_> {
    /// Returns when this layer may take its next piece.
    pub(super) async fn next(&mut self) {
        let mut changes = self.turn.turns.0.subscribe();
        loop {
            if self.turn.is_urgent() {
                self.set_hungry(true);
                return;
            }
            let Urgent { hungry, fed } = *changes.borrow_and_update();
            let silent = fed.elapsed();
            if hungry == 0 || silent >= SILENCE {
                return;
            }
            // Whichever comes first, all is looked at again.
            let _ = tokio::time::timeout(SILENCE - silent, changes.changed()).await;
        }
    }

    /// A piece has come.
    pub(super) fn fed(&self) {
        if self.hungry {
            self.turn.turns.0.send_modify(|urgent| urgent.fed = Instant::now());
        }
    }

    /// What has come is more than can be decoded now.
    pub(super) fn full(&mut self) {
        self.set_hungry(false);
    }

    fn set_hungry(&mut self, hungry: bool) {
        if self.hungry == hungry {
            return;
        }
        self.hungry = hungry;
        self.turn.turns.0.send_modify(|urgent| {
            if hungry {
                *urgent = Urgent { hungry: urgent.hungry + 1, fed: Instant::now() };
            } else {
                urgent.hungry -= 1;
            }
        });
    }
}

impl Drop for Taking<'_> {
    fn drop(&mut self) {
        self.set_hungry(false);
    }
}

/// An urgent layer that gets nothing for so long does not need the link.
const SILENCE: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use futures_util::FutureExt as _;

    use super::*;

    fn may_take(taking: &mut Taking<'_>) -> bool {
        taking.next().now_or_never().is_some()
    }

    #[tokio::test]
    async fn the_layer_somebody_waits_for_goes_first() {
        let turns = Turns::new();
        let (wanted, other) = (Turn::new(&turns), Turn::new(&turns));
        let (mut first, mut second) = (wanted.take(), other.take());
        assert!(may_take(&mut first) && may_take(&mut second), "nobody waits for either");
        wanted.set_urgent(true);
        assert!(may_take(&mut first));
        assert!(!may_take(&mut second), "the link is the first one's");
        first.fed();
        assert!(!may_take(&mut second));
        first.full();
        assert!(may_take(&mut second), "the first one has more than it can use");
        assert!(may_take(&mut first));
        assert!(!may_take(&mut second));
        other.set_urgent(true);
        assert!(may_take(&mut second), "both are waited for");
        other.set_urgent(false);
        second.full();
        drop(first);
        assert!(may_take(&mut second), "the first one has ended");
    }

    #[tokio::test]
    async fn a_layer_that_gets_nothing_holds_up_nobody() {
        let turns = Turns::new();
        let (wanted, other) = (Turn::new(&turns), Turn::new(&turns));
        wanted.set_urgent(true);
        let mut first = wanted.take();
        assert!(may_take(&mut first));
        turns.0.send_modify(|urgent| urgent.fed = Instant::now().checked_sub(SILENCE).unwrap());
        assert!(may_take(&mut other.take()));
    }
}
