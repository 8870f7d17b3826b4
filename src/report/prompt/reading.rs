//! Reads one answer from the terminal, and can be stopped from another thread.
//!
//! dialoguer edits and echoes the line. It blocks where nothing wakes it, so it is
//! called only when a key has been pressed; until then this waits for the keyboard and
//! for a withdrawal alike. While it runs, this thread takes no signals: console takes
//! any signal that breaks its wait for a Ctrl+C.

use std::fmt;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use console::Term;
use dialoguer::Input;
use dialoguer::theme::Theme;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow};
use nix::sys::termios::{FlushArg, LocalFlags, SetArg, Termios, tcflush, tcgetattr, tcsetattr};

const HANGUP_MILLISECONDS: u16 = 1000;

/// Says that the open question is no longer one.
#[derive(Default)]
pub(super) struct Withdrawal {
    asked: AtomicU64,
    /// Questions up to this one are withdrawn.
    withdrawn: AtomicU64,
    wake: Mutex<Option<PipeWriter>>,
}

impl Withdrawal {
    /// The number of a new question.
    pub(super) fn next(&self) -> u64 {
        self.asked.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Takes all questions asked so far back.
    pub(super) fn withdraw(&self) {
        self.withdrawn.fetch_max(self.asked.load(Ordering::SeqCst), Ordering::SeqCst);
        if let Some(wake) = self.lock().as_mut() {
            let _ = wake.write_all(b"x");
        }
    }

    fn is_withdrawn(&self, question: u64) -> bool {
        self.withdrawn.load(Ordering::SeqCst) >= question
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<PipeWriter>> {
        self.wake.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The terminal while a question stands.
pub(super) struct Keyboard<'a> {
    term: &'a Term,
    withdrawal: &'a Withdrawal,
    question: u64,
    woken: PipeReader,
    signals: SigSet,
    found: Termios,
}

/// What came of waiting for a key.
enum Waited {
    Key,
    Withdrawn,
    Gone,
}

impl<'a> Keyboard<'a> {
    /// Nothing when there is no terminal. What was typed before is forgotten.
    pub(super) fn new(term: &'a Term, withdrawal: &'a Withdrawal, question: u64) -> Option<Self> {
        let stdin = io::stdin();
        let found = tcgetattr(&stdin).ok()?;
        let (woken, wake) = io::pipe().ok()?;
        let signals = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK).ok()?;
        *withdrawal.lock() = Some(wake);
        let _ = tcflush(&stdin, FlushArg::TCIFLUSH);
        let keyboard = Self { term, withdrawal, question, woken, signals, found };
        keyboard.quiet();
        Some(keyboard)
    }

    /// Shows lines above the answer.
    pub(super) fn show(&self, text: &str) {
        let _ = self.term.write_str(text);
    }

    /// One line, without outer spaces; none when the question was withdrawn or interrupted,
    /// or the terminal went away.
    pub(super) fn line(&mut self, prompt: &str) -> Option<String> {
        let _ = self.term.write_str(prompt);
        match self.wait() {
            Waited::Key => {}
            Waited::Withdrawn => {
                let _ = self.term.write_str("(no longer asked)\n");
                return None;
            }
            Waited::Gone => {
                self.let_hangup_arrive();
                return None;
            }
        }
        let _ = self.term.clear_line();
        let answer = Input::<String>::with_theme(&Bare).with_prompt(prompt).allow_empty(true).interact_text_on(self.term);
        self.quiet();
        let answer = match answer {
            Ok(answer) => answer,
            Err(dialoguer::Error::IO(error)) => {
                if error.kind() != io::ErrorKind::Interrupted {
                    self.let_hangup_arrive();
                }
                return None;
            }
        };
        if self.withdrawal.is_withdrawn(self.question) {
            let _ = self.term.write_str("(too late: no longer asked)\n");
            return None;
        }
        Some(answer.trim().to_owned())
    }

    /// Keys come one by one and are not echoed, so that a first key can be waited for;
    /// Ctrl+C stays a signal.
    fn quiet(&self) {
        let mut settings = self.found.clone();
        settings.local_flags.remove(LocalFlags::ICANON | LocalFlags::ECHO);
        let _ = tcsetattr(io::stdin(), SetArg::TCSADRAIN, &settings);
    }

    /// When the terminal goes away, a signal says so as well; it decides what becomes of the
    /// run, so it comes first where there is one.
    fn let_hangup_arrive(&self) {
        let mut woken = [PollFd::new(self.woken.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut woken, PollTimeout::from(HANGUP_MILLISECONDS));
    }

    fn wait(&mut self) -> Waited {
        loop {
            if self.withdrawal.is_withdrawn(self.question) {
                return Waited::Withdrawn;
            }
            let stdin = io::stdin();
            let mut ready = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN), PollFd::new(self.woken.as_fd(), PollFlags::POLLIN)];
            match poll(&mut ready, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return Waited::Gone,
            }
            let events = ready.map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
            if events[1].contains(PollFlags::POLLIN) {
                let _ = self.woken.read(&mut [0; 16]);
                continue;
            }
            if events[0].intersects(PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL) {
                return Waited::Gone;
            }
            if events[0].contains(PollFlags::POLLIN) {
                return Waited::Key;
            }
        }
    }
}

impl Drop for Keyboard<'_> {
    fn drop(&mut self) {
        *self.withdrawal.lock() = None;
        let _ = tcsetattr(io::stdin(), SetArg::TCSADRAIN, &self.found);
        // A Ctrl+C that console read as a key is delivered here, once.
        let _ = self.signals.thread_set_mask();
    }
}

/// The prompt as it is, and the answer behind it.
struct Bare;

impl Theme for Bare {
    fn format_input_prompt(&self, f: &mut dyn fmt::Write, prompt: &str, _default: Option<&str>) -> fmt::Result {
        f.write_str(prompt)
    }

    fn format_input_prompt_selection(&self, f: &mut dyn fmt::Write, prompt: &str, answer: &str) -> fmt::Result {
        write!(f, "{prompt}{answer}")
    }
}
