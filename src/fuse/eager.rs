//! How a thread waits for the next request when they come in quick succession.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::time::{Duration, Instant};

use super::device::Device;

/// Looks for the next request for a moment instead of sleeping at once, where requests come in quick
/// succession: to wake a thread on an idle CPU takes longer than most requests do.
///
/// It yields the CPU to any thread that wants it, and pauses for a while when one did or nothing came:
/// on a busy CPU sleeping costs nothing. The process that asks sleeps as well until it is answered; for its
/// sake the CPUs are kept [awake](Awake).
pub(super) struct Eager {
    since: Instant,
    /// Requests until it is worth looking again.
    pause: u32,
    /// Requests in quick succession so far.
    row: u32,
    awake: Option<Awake>,
    /// This process cannot keep the CPUs awake, or is not to.
    may_not: bool,
}

impl Eager {
    /// With `let_cpus_sleep` no CPU is kept awake.
    pub(super) fn new(let_cpus_sleep: bool) -> Self {
        Self { since: Instant::now(), pause: 0, row: 0, awake: None, may_not: let_cpus_sleep }
    }

    /// Returns when a request is there, or when it is time to sleep until one comes.
    pub(super) fn await_next(&mut self, device: &Device) {
        let begun = Instant::now();
        let since = begun.duration_since(std::mem::replace(&mut self.since, begun));
        let quick = since < QUICK_SUCCESSION;
        self.row = if since < SUCCESSION { self.row.saturating_add(1) } else { 0 };
        if self.row >= WORTH_WAKING && self.awake.is_none() && !self.may_not {
            self.awake = Awake::keep();
            self.may_not = self.awake.is_none();
        }
        if quick && self.pause == 0 {
            if self.look(device, begun) {
                return;
            }
        } else {
            self.pause = self.pause.saturating_sub(1);
        }
        if self.awake.is_some() && !device.has_more_within(SUCCESSION_ENDS) {
            self.awake = None;
        }
    }

    /// This thread awaits requests no more for now: what it answered took long, so that waking a reader takes little
    /// beside it.
    pub(super) fn rest(&mut self) {
        (self.awake, self.row) = (None, 0);
    }

    fn look(&mut self, device: &Device, begun: Instant) -> bool {
        let mut now = begun;
        while now.duration_since(begun) < QUICK_SUCCESSION {
            if device.has_more() {
                return true;
            }
            std::thread::yield_now();
            let before = std::mem::replace(&mut now, Instant::now());
            if now.duration_since(before) > WANTED {
                self.pause = LONG_PAUSE;
                return false;
            }
        }
        self.pause = PAUSE;
        false
    }
}

/// While it is there, idle CPUs wait for work without sleeping, ready within a microsecond: in a virtual machine
/// it takes 50 µs to wake one that sleeps, and reading a small file for the first time wakes a thread four times.
///
/// The kernel's interface for it is `/dev/cpu_dma_latency` (Documentation/power/pm_qos_interface.rst), open to
/// root; the kernel takes the wish back when the file is closed, however the process ends.
struct Awake {
    _wish: File,
}

impl Awake {
    fn keep() -> Option<Self> {
        let wish = || -> io::Result<File> {
            let mut file = OpenOptions::new().write(true).open("/dev/cpu_dma_latency")?;
            file.write_all(&0_i32.to_ne_bytes())?;
            Ok(file)
        };
        wish().ok().map(|wish| Self { _wish: wish })
    }
}

/// Requests that follow each other closer than this are in quick succession.
const QUICK_SUCCESSION: Duration = Duration::from_micros(250);
/// Requests that follow each other closer than this are of one succession.
const SUCCESSION: Duration = Duration::from_millis(2);
/// A succession is over when nothing has come for so long.
const SUCCESSION_ENDS: Duration = Duration::from_millis(10);
/// Requests in quick succession from which on more are to be expected.
const WORTH_WAKING: u32 = 8;
/// Requests to let pass after one was awaited in vain.
const PAUSE: u32 = 8;
/// As [`PAUSE`], after another thread wanted the CPU.
const LONG_PAUSE: u32 = 1000;
/// Yielding takes longer than this when another thread has much to do; a reader has little.
const WANTED: Duration = Duration::from_micros(500);
