//! `peelfs top` on a terminal, by script(1): what it draws, which keys it obeys, and how it leaves the terminal.

use std::io::{Read as _, Write as _};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};

use rustix::process::{Pid, Signal, kill_process};
use support::sandbox::{Sandbox, program, said};

/// `peelfs top` on a terminal of 24 lines.
struct Top {
    script: Child,
    keys: ChildStdin,
    drawn: Receiver<Vec<u8>>,
    /// All that was drawn so far.
    screen: String,
}

impl Top {
    fn start(sandbox: &Sandbox) -> Self {
        let mut script = Command::new("script");
        let line = format!("stty rows 24 cols 100; exec '{}' top --interval 0.1", program().display());
        script.args(["-qec", &line, "/dev/null"]).env_clear();
        let plain = sandbox.peelfs(["top"]);
        script.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
        script.env("SHELL", "/bin/sh").env("TERM", "xterm-256color").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut script = script.spawn().unwrap();
        let (keys, mut output) = (script.stdin.take().unwrap(), script.stdout.take().unwrap());
        let (sender, drawn) = mpsc::channel();
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(length @ 1..) = output.read(&mut piece) {
                let _ = sender.send(piece[..length].to_vec());
            }
        });
        Self { script, keys, drawn, screen: String::new() }
    }

    /// Waits until this is drawn.
    fn until(&mut self, text: &str) {
        while !self.screen.contains(text) {
            let piece = self.drawn.recv().unwrap_or_else(|_| panic!("no `{text}` in {:?}", self.screen));
            self.screen += &String::from_utf8_lossy(&piece);
        }
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
        self.keys.flush().unwrap();
    }

    /// Waits for its end; returns all that was drawn.
    fn ended(mut self) -> (ExitStatus, String) {
        let status = self.script.wait().unwrap();
        self.drawn.iter().for_each(|piece| self.screen += &String::from_utf8_lossy(&piece));
        (status, self.screen)
    }

    /// The process of the program, which script(1) has started.
    fn process(&self) -> Pid {
        let children = format!("/proc/{0}/task/{0}/children", self.script.id());
        let child = std::fs::read_to_string(children).unwrap();
        Pid::from_raw(child.split_whitespace().next().unwrap().parse().unwrap()).unwrap()
    }
}

const ENTER: &str = "\u{1b}[?1049h";
const LEAVE: &str = "\u{1b}[?1049l";

#[test]
fn top_obeys_keys_and_leaves_the_terminal_as_it_was() {
    let sandbox = Sandbox::new();
    for quit in ["q", "\u{3}"] {
        let mut top = Top::start(&sandbox);
        top.until(" peelfs top ");
        assert!(top.screen.contains(ENTER));
        // Only cells that change are drawn, so all of it is drawn again, and one word is waited for.
        top.press("?\u{c}");
        top.until("goes");
        // `q` goes back as any other key.
        top.press("q?\u{c}");
        top.until("goes");
        top.press(" s");
        top.press(quit);
        let (status, screen) = top.ended();
        assert!(status.success(), "{quit:?}: {screen:?}");
        assert!(screen.rfind(LEAVE) > screen.rfind(ENTER), "{quit:?}: {screen:?}");
    }
}

#[test]
fn a_signal_to_top_leaves_the_terminal_as_it_was() {
    let sandbox = Sandbox::new();
    for signal in [Signal::TERM, Signal::HUP, Signal::INT] {
        let mut top = Top::start(&sandbox);
        top.until(" peelfs top ");
        kill_process(top.process(), signal).unwrap();
        let (status, screen) = top.ended();
        assert!(status.success() && screen.rfind(LEAVE) > screen.rfind(ENTER), "{signal:?}: {status} {screen:?}");
    }
}

#[test]
fn top_without_a_terminal_says_what_to_use() {
    let output = Sandbox::new().run(["top"]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("needs a terminal") && said(&output).contains("hint: `peelfs status --activity`"));
}
