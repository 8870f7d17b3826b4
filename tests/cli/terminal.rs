//! A real terminal: a pseudo-terminal with a screen behind it.
//!
//! Responsible for keys, screen, size and hanging up. It sees what an operator
//! sees, so tests wait for text to be on the screen and then press the next key.

use std::io::{Read as _, Write as _};
use std::num::NonZeroU16;
use std::os::fd::AsFd as _;
use std::process::{Child, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::{self, Signal};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::Pid;
use pty_process::Size;
use pty_process::blocking::{Command, Pts, Pty};

use crate::environment::{PATIENCE, TestEnv};

/// Keys with a name.
pub mod key {
    /// Return.
    pub const ENTER: &str = "\r";
    /// Escape.
    pub const ESCAPE: &str = "\x1b";
    /// Arrow up.
    pub const UP: &str = "\x1b[A";
    /// Arrow down.
    pub const DOWN: &str = "\x1b[B";
    /// Interrupt.
    pub const CTRL_C: &str = "\x03";
    /// End of input.
    pub const CTRL_D: &str = "\x04";
    /// Suspend.
    pub const CTRL_Z: &str = "\x1a";
    /// Backspace.
    pub const BACKSPACE: &str = "\x7f";
}

const ROWS: u16 = 40;
const COLUMNS: u16 = 100;
const SCROLLBACK: usize = 10_000;

/// A program on a terminal; killed when dropped.
pub struct Terminal<'a> {
    environment: &'a TestEnv,
    child: Child,
    pty: Option<Arc<Pty>>,
    /// Kept open, so that the terminal outlives the program and its last words are read.
    line: Option<Pts>,
    view: Arc<View>,
    reader: Option<std::thread::JoinHandle<()>>,
}

struct View {
    parser: Mutex<vt100::Parser>,
    raw: Mutex<Vec<u8>>,
    changed: Condvar,
    hung_up: AtomicBool,
}

impl<'a> Terminal<'a> {
    /// Starts a program on a new terminal.
    pub fn start(mut command: Command, environment: &'a TestEnv) -> Self {
        let (pty, pts) = pty_process::blocking::open().expect("a pseudo-terminal");
        pty.resize(Size::new(ROWS, COLUMNS)).expect("an open terminal");
        let child = command.spawn_borrowed(&pts).expect("the program starts");
        let pty = Arc::new(pty);
        let view = Arc::new(View {
            parser: Mutex::new(vt100::Parser::new(cells(ROWS), cells(COLUMNS), SCROLLBACK)),
            raw: Mutex::default(),
            changed: Condvar::new(),
            hung_up: AtomicBool::new(false),
        });
        let reader = std::thread::spawn({
            let (pty, view) = (Arc::clone(&pty), Arc::clone(&view));
            move || view.follow(&pty)
        });
        Self { environment, child, pty: Some(pty), line: Some(pts), view, reader: Some(reader) }
    }

    /// Types text or keys.
    pub fn send(&self, keys: &str) -> &Self {
        self.pty().write_all(keys.as_bytes()).expect("an open terminal");
        self
    }

    /// Waits until the text is on the screen.
    #[track_caller]
    pub fn wait_for(&self, text: &str) -> &Self {
        self.wait_until(&format!("{text:?} on the screen"), |screen| screen.contents().contains(text))
    }

    /// Waits until the text is not on the screen.
    #[track_caller]
    pub fn wait_until_gone(&self, text: &str) -> &Self {
        self.wait_until(&format!("{text:?} to leave the screen"), |screen| !screen.contents().contains(text))
    }

    /// Waits until the screen is as asked for.
    #[track_caller]
    pub fn wait_until(&self, what: &str, met: impl Fn(&vt100::Screen) -> bool) -> &Self {
        let deadline = Instant::now() + PATIENCE;
        let mut parser = self.view.parser.lock().unwrap();
        while !met(parser.screen()) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "waited in vain for {what}; the screen:\n{}", text_of(parser.screen()));
            parser = self.view.changed.wait_timeout(parser, left).unwrap().0;
        }
        drop(parser);
        self
    }

    /// The screen's text, normalised, without trailing blanks.
    pub fn screen(&self) -> String {
        self.environment.normalise(&text_of(self.view.parser.lock().unwrap().screen()))
    }

    /// All that was ever on the terminal and scrolled away or still stands, normalised.
    pub fn history(&self) -> String {
        let mut parser = self.view.parser.lock().unwrap();
        let screen = parser.screen_mut();
        let mut lines = Vec::new();
        screen.set_scrollback(usize::MAX);
        for offset in (1..=screen.scrollback()).rev() {
            screen.set_scrollback(offset);
            lines.extend(screen.rows(0, COLUMNS).next());
        }
        screen.set_scrollback(0);
        lines.push(text_of(screen));
        let text = lines.iter().map(|line| line.trim_end()).collect::<Vec<_>>().join("\n");
        self.environment.normalise(text.trim())
    }

    /// Every byte written to the terminal, escapes included.
    pub fn raw(&self) -> String {
        String::from_utf8_lossy(&self.view.raw.lock().unwrap()).into_owned()
    }

    /// Whether the cursor can be seen.
    pub fn shows_cursor(&self) -> bool {
        !self.view.parser.lock().unwrap().screen().hide_cursor()
    }

    /// Whether the terminal is as a shell expects it: keys echoed, input by lines, Ctrl+C a signal.
    pub fn is_sane(&self) -> bool {
        let line = self.line.as_ref().expect("not hung up");
        let flags = tcgetattr(line).expect("an open terminal").local_flags;
        flags.contains(LocalFlags::ECHO | LocalFlags::ICANON | LocalFlags::ISIG)
    }

    /// Another size; the program gets SIGWINCH.
    pub fn resize(&self, rows: u16, columns: u16) -> &Self {
        self.view.parser.lock().unwrap().set_size(cells(rows), cells(columns));
        self.pty().resize(Size::new(rows, columns)).expect("an open terminal");
        self
    }

    /// The program's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends the program a signal.
    pub fn signal(&self, signal: Signal) -> &Self {
        signal::kill(Pid::from_raw(self.pid() as i32), signal).expect("it still runs");
        self
    }

    /// Closes the terminal as closing its window does: the program gets SIGHUP and can write no more.
    pub fn hang_up(&mut self) {
        self.view.hung_up.store(true, Ordering::Release);
        if let Some(reader) = self.reader.take() {
            reader.join().expect("the reader ends");
        }
        self.line = None;
        self.pty = None;
    }

    /// Waits for the program's end and for its last words.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                break status;
            }
            assert!(Instant::now() < deadline, "the program does not end; the screen:\n{}", self.screen());
            std::thread::sleep(std::time::Duration::from_millis(3));
        };
        if let Some(line) = self.line.take() {
            // A mark of our own behind the last words shows that all of them were read.
            const MARK: &[u8] = b"\x1b]0;end\x07";
            nix::unistd::write(&line, MARK).expect("an open terminal");
            self.line = Some(line);
            let mut parser = self.view.parser.lock().unwrap();
            while !self.view.raw.lock().unwrap().windows(MARK.len()).any(|bytes| bytes == MARK) {
                assert!(Instant::now() < deadline, "the terminal's output does not end");
                parser = self.view.changed.wait_timeout(parser, PATIENCE).unwrap().0;
            }
        }
        status
    }

    fn pty(&self) -> &Pty {
        self.pty.as_ref().expect("not hung up")
    }
}

impl Drop for Terminal<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.hang_up();
    }
}

impl View {
    fn follow(&self, pty: &Pty) {
        // How soon a hang-up is noticed, in milliseconds.
        const LOOK: u16 = 20;
        let mut buffer = [0; 8192];
        while !self.hung_up.load(Ordering::Acquire) {
            let mut waiting = [PollFd::new(pty.as_fd(), PollFlags::POLLIN)];
            if poll(&mut waiting, LOOK) == Ok(0) {
                continue;
            }
            let Ok(count @ 1..) = (&mut &*pty).read(&mut buffer) else { break };
            let mut parser = self.parser.lock().unwrap();
            self.raw.lock().unwrap().extend_from_slice(&buffer[..count]);
            parser.process(&buffer[..count]);
            self.changed.notify_all();
        }
    }
}

fn cells(count: u16) -> NonZeroU16 {
    NonZeroU16::new(count).expect("a terminal has a size")
}

fn text_of(screen: &vt100::Screen) -> String {
    let (_, columns) = screen.size();
    let lines = screen.rows(0, columns.get()).map(|line| line.trim_end().to_owned()).collect::<Vec<_>>();
    lines.join("\n").trim_end().to_owned()
}

#[test]
fn keys_reach_the_program_and_its_words_the_screen() {
    let env = TestEnv::new();
    let script = r#"printf 'Name? '; read name; printf '\033[2J\033[H\033[1mHello %s\033[0m\n' "$name"; stty size; exit 4"#;
    let mut terminal = env.command("sh", ["-c", script]).terminal();
    terminal.wait_for("Name?").resize(20, 60).send("Ada").send(key::ENTER);
    assert_eq!(terminal.wait().code(), Some(4));
    insta::assert_snapshot!(terminal.screen(), @"
    Hello Ada
    20 60
    ");
}

#[test]
fn an_interrupt_key_is_a_signal() {
    let env = TestEnv::new();
    let mut terminal = env.command("sh", ["-c", "trap 'echo caught; exit 130' INT; echo ready; sleep 600 & wait"]).terminal();
    terminal.wait_for("ready").send(key::CTRL_C);
    assert_eq!(terminal.wait().code(), Some(130));
    assert!(terminal.screen().contains("caught"), "{}", terminal.screen());
}

#[test]
fn hanging_up_is_noticed() {
    let env = TestEnv::new();
    let done = env.path("done");
    let script = format!("trap 'echo hung up > {}; exit 9' HUP; echo ready; sleep 600 & wait", done.display());
    let mut terminal = env.command("sh", ["-c", &script]).terminal();
    terminal.wait_for("ready");
    terminal.hang_up();
    assert_eq!(terminal.wait().code(), Some(9));
    assert_eq!(env.read("done"), "hung up\n");
}
