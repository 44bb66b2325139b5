//! Progress on a terminal: a bar for what takes longer than a moment. Elsewhere, and with `--quiet`, nothing is shown.
//!
//! One bar is shown at a time, by a thread of its own: a command that waits or computes need not draw. What a command
//! prints meanwhile is printed [above](above) it.

use std::fmt;
use std::io::{self, IsTerminal as _, Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use indicatif::{BinaryBytes, HumanDuration, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use peelfs::host::Progress;
use peelfs::image::ImageFs;

/// Whether progress is wanted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Quiet {
    /// It is shown on a terminal.
    No,
    /// It is not shown.
    Yes,
}

impl From<bool> for Quiet {
    fn from(quiet: bool) -> Self {
        if quiet { Self::Yes } else { Self::No }
    }
}

impl Quiet {
    fn is_shown(self) -> bool {
        self == Self::No && io::stderr().is_terminal()
    }
}

/// The progress of a mount, whose process tells how far it is.
pub(crate) struct Bar {
    began: Instant,
    wanted: bool,
}

impl Bar {
    pub(crate) fn new(quiet: Quiet) -> Self {
        Self { began: Instant::now(), wanted: quiet.is_shown() }
    }
}

impl Progress for Bar {
    fn show(&mut self, total: u64, done: u64) {
        if self.wanted && total > 0 && self.began.elapsed() >= PATIENCE {
            draw(READING, done, Some(total));
        }
    }

    fn note(&mut self, note: &str) {
        above(|| eprintln!("note: {}", super::text::printable(note.as_bytes())));
    }

    fn end(&mut self) {
        hide();
    }
}

/// The progress of this process, in bytes. The bar disappears when it is dropped.
pub(crate) struct Meter {
    counts: Arc<Counts>,
    drawing: Option<(mpsc::Sender<()>, JoinHandle<()>)>,
}

/// What is counted.
#[derive(Default)]
struct Counts {
    done: AtomicU64,
    /// 0 if it is not known.
    total: AtomicU64,
    what: Mutex<&'static str>,
    /// Counts what is done in place of `done`.
    followed: Mutex<Option<Box<dyn Fn() -> u64 + Send>>>,
    /// Layers of these are read before anything else can go on.
    images: Mutex<Vec<Arc<ImageFs>>>,
}

impl Meter {
    /// `what` is done, as in `copying`.
    pub(crate) fn start(what: &'static str, quiet: Quiet) -> Self {
        let counts = Arc::new(Counts { what: Mutex::new(what), ..Counts::default() });
        let drawing = quiet.is_shown().then(|| {
            let (counts, (ended, end)) = (Arc::clone(&counts), mpsc::channel());
            let began = Instant::now();
            let draw = move || {
                while let Err(mpsc::RecvTimeoutError::Timeout) = end.recv_timeout(TICK) {
                    if began.elapsed() >= PATIENCE {
                        counts.draw();
                    }
                }
                hide();
            };
            let thread = std::thread::Builder::new().name("progress".into()).spawn(draw);
            thread.ok().map(|thread| (ended, thread))
        });
        Self { counts, drawing: drawing.flatten() }
    }

    /// Whether it is shown, so that it is worth finding out how much there is to do.
    pub(crate) fn is_shown(&self) -> bool {
        self.drawing.is_some()
    }

    /// Layers of `image` that are read are shown first.
    pub(crate) fn watch(&self, image: &Arc<ImageFs>) {
        if self.is_shown() {
            lock(&self.counts.images).push(Arc::clone(image));
        }
    }

    /// Something else is done from now on.
    pub(crate) fn begin(&self, what: &'static str, total: Option<u64>) {
        *lock(&self.counts.what) = what;
        *lock(&self.counts.followed) = None;
        self.counts.done.store(0, Ordering::Relaxed);
        self.counts.total.store(total.unwrap_or(0), Ordering::Relaxed);
    }

    /// So many bytes are done.
    pub(crate) fn add(&self, bytes: u64) {
        self.counts.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// From now on, `done` tells the bytes that are done.
    pub(crate) fn follow(&self, done: impl Fn() -> u64 + Send + 'static) {
        *lock(&self.counts.followed) = Some(Box::new(done));
    }

    /// Finds out how much there is to do, unless that is done sooner.
    pub(crate) fn total_will_be(&self, total: impl Future<Output = Option<u64>> + Send + 'static) {
        if self.is_shown() {
            let counts = Arc::clone(&self.counts);
            tokio::spawn(async move {
                tokio::time::sleep(PATIENCE).await;
                if let Some(total) = total.await {
                    counts.total.store(total, Ordering::Relaxed);
                }
            });
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if let Some((ended, thread)) = self.drawing.take() {
            drop(ended);
            // It has nothing to return, and hides the bar even if it panics.
            let _ = thread.join();
        }
    }
}

impl Counts {
    fn draw(&self) {
        let (mut total, mut done) = (0, 0);
        for image in lock(&self.images).iter() {
            let (all, read) = image.progress();
            (total, done) = (total + all, done + read);
        }
        if done < total {
            return draw(READING, done, Some(total));
        }
        let followed = lock(&self.followed).as_ref().map(|done| done());
        let done = followed.unwrap_or_else(|| self.done.load(Ordering::Relaxed));
        let total = self.total.load(Ordering::Relaxed);
        if done > 0 || total > 0 {
            draw(*lock(&self.what), done, (total > 0).then_some(total.max(done)));
        } else {
            hide();
        }
    }
}

/// Bytes that pass are counted.
pub(crate) struct Counted<'a, T>(pub(crate) T, pub(crate) &'a Meter);

impl<T: Read> Read for Counted<'_, T> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf).inspect(|read| self.1.add(*read as u64))
    }
}

/// Prints to the terminal, above the bar.
pub(crate) fn above<T>(print: impl FnOnce() -> T) -> T {
    match &mut *lock(&SCREEN) {
        Screen { shown: Some((_, bar)), .. } => bar.suspend(print),
        Screen { shown: None, .. } => print(),
    }
}

/// Writes to the terminal, above the bar. While its last line is not complete, there is no bar.
pub(crate) fn write_above(out: &mut impl Write, bytes: &[u8]) -> io::Result<usize> {
    let mut screen = lock(&SCREEN);
    screen.hide();
    let written = out.write(bytes).and_then(|written| out.flush().map(|()| written))?;
    if let Some(last) = bytes[..written].last() {
        screen.in_line = *last != b'\n';
    }
    Ok(written)
}

/// What the terminal shows of this process.
struct Screen {
    shown: Option<(Kind, ProgressBar)>,
    /// The cursor is behind output, where no bar can be.
    in_line: bool,
}

/// What a bar is about; another one begins anew.
type Kind = (&'static str, bool);

impl Screen {
    fn hide(&mut self) {
        if let Some((_, bar)) = self.shown.take() {
            bar.finish_and_clear();
        }
    }
}

fn draw(what: &'static str, done: u64, total: Option<u64>) {
    let mut screen = lock(&SCREEN);
    if screen.in_line {
        return;
    }
    let kind = (what, total.is_some());
    if screen.shown.as_ref().is_none_or(|(shown, _)| *shown != kind) {
        screen.hide();
        let narrow = rustix::termios::tcgetwinsize(io::stderr()).is_ok_and(|size| (1..NARROW).contains(&size.ws_col));
        let template = match (total.is_some(), narrow) {
            (true, false) => WITH_TOTAL,
            (false, false) => WITHOUT_TOTAL,
            (true, true) => NARROW_WITH_TOTAL,
            (false, true) => NARROW_WITHOUT_TOTAL,
        };
        let style = ProgressStyle::with_template(template).expect("the template is a constant");
        let pace = Pace { began: Instant::now(), done };
        let style = style
            .with_key("rate", move |state: &ProgressState, out: &mut dyn fmt::Write| {
                let rate = pace.rate(state.pos(), Instant::now());
                // What cannot be written to is not shown.
                let _ = rate.map_or(Ok(()), |rate| write!(out, "{}/s", BinaryBytes(rate as u64)));
            })
            .with_key("left", move |state: &ProgressState, out: &mut dyn fmt::Write| {
                let left = state.len().and_then(|all| pace.left(state.pos(), all, Instant::now()));
                let _ = left.map_or(Ok(()), |left| write!(out, "{:#}", HumanDuration(left)));
            });
        let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr()).with_style(style);
        bar.set_message(what);
        screen.shown = Some((kind, bar));
    }
    if let Some((_, bar)) = &screen.shown {
        if let Some(total) = total {
            bar.set_length(total);
        }
        bar.set_position(done);
        bar.tick();
    }
}

/// How fast it goes since it is shown: what was done before took an unknown time.
#[derive(Clone, Copy)]
struct Pace {
    began: Instant,
    done: u64,
}

impl Pace {
    /// Bytes per second; `None` before there is something to tell it from.
    fn rate(&self, done: u64, now: Instant) -> Option<f64> {
        let (took, done) = (now.saturating_duration_since(self.began), done.saturating_sub(self.done));
        (took >= MEASURED).then(|| done as f64 / took.as_secs_f64())
    }

    fn left(&self, done: u64, all: u64, now: Instant) -> Option<Duration> {
        let rate = self.rate(done, now).filter(|rate| *rate > 0.0)?;
        let seconds = all.saturating_sub(done) as f64 / rate;
        Duration::try_from_secs_f64(seconds.ceil()).ok()
    }
}

fn hide() {
    lock(&SCREEN).hide();
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

static SCREEN: Mutex<Screen> = Mutex::new(Screen { shown: None, in_line: false });

const READING: &str = "reading layers";
const WITH_TOTAL: &str = "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {rate} {left}";
const WITHOUT_TOTAL: &str = "{msg} {spinner} {binary_bytes} {rate}";
const NARROW_WITH_TOTAL: &str = "{wide_msg} {percent}%";
const NARROW_WITHOUT_TOTAL: &str = "{wide_msg} {binary_bytes}";
/// Terminals with fewer columns have no room for a bar.
const NARROW: u16 = 72;
/// A rate is told from this time on.
const MEASURED: Duration = Duration::from_millis(500);
/// Delay before the bar appears.
const PATIENCE: Duration = Duration::from_millis(300);
/// How often it is drawn.
const TICK: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_of_what_was_done_since_it_is_shown() {
        let began = Instant::now();
        let pace = Pace { began, done: 1 << 30 };
        let after = |millis| began + Duration::from_millis(millis);
        assert_eq!((pace.rate(1 << 30, after(5000)), pace.left(1 << 30, 1 << 31, after(5000))), (Some(0.0), None));
        assert_eq!(pace.rate((1 << 30) + 4096, after(100)), None, "too early");
        assert_eq!(pace.rate((1 << 30) + 4096, after(2000)), Some(2048.0));
        let left = pace.left((1 << 30) + 4096, (1 << 30) + 4096 + 20480, after(2000));
        assert_eq!(left, Some(Duration::from_secs(10)));
        // It would be longer than can be told.
        assert_eq!(pace.left((1 << 30) + 1, u64::MAX, after(600_000)), None);
    }
}
