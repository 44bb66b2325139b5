//! Polling for the next request while requests come in quick succession.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::time::{Duration, Instant};

use super::device::Device;

/// Polls for the next request for a moment before sleeping, while requests come in quick succession: waking a thread on
/// an idle CPU takes longer than most requests.
///
/// It yields the CPU to any runnable thread, and pauses polling after another thread ran or no request came: on a busy
/// CPU sleeping costs nothing. The requesting process also sleeps until it is answered; for its sake the CPUs are kept
/// [awake](Awake).
pub(super) struct Eager {
    since: Instant,
    /// Requests before polling is tried again.
    pause: u32,
    /// Requests in quick succession so far.
    row: u32,
    awake: Option<Awake>,
    /// This process cannot or must not keep the CPUs awake.
    may_not: bool,
}

impl Eager {
    /// With `let_cpus_sleep` no CPU is kept awake.
    pub(super) fn new(let_cpus_sleep: bool) -> Self {
        Self { since: Instant::now(), pause: 0, row: 0, awake: None, may_not: let_cpus_sleep }
    }

    /// Returns when a request is pending, or when it is time to sleep until one comes.
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

    /// Stops polling for now: the last answer took long, so the cost of waking a reader does not matter.
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

/// While this exists, idle CPUs do not enter deep sleep states and react within a microsecond: in a virtual machine
/// waking one takes 50 µs, and the first read of a small file wakes a thread four times.
///
/// The kernel interface is `/dev/cpu_dma_latency` (Documentation/power/pm_qos_interface.rst), open to root; the kernel
/// drops the setting when the file is closed, however the process ends.
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

/// Maximum distance of requests in quick succession.
const QUICK_SUCCESSION: Duration = Duration::from_micros(250);
/// Maximum distance of requests in one succession.
const SUCCESSION: Duration = Duration::from_millis(2);
/// A succession ends after this time without requests.
const SUCCESSION_ENDS: Duration = Duration::from_millis(10);
/// Requests in quick succession after which more are expected.
const WORTH_WAKING: u32 = 8;
/// Requests to skip after polling was unsuccessful.
const PAUSE: u32 = 8;
/// As [`PAUSE`], after another thread used the CPU.
const LONG_PAUSE: u32 = 1000;
/// Yielding takes longer than this if another thread has much to do; a reader has little.
const WANTED: Duration = Duration::from_micros(500);
