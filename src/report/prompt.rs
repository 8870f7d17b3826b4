//! Asks people at the terminal: one question at a time, on standard error.
//!
//! A question shows what it depends on and what each answer does. Nothing typed before
//! it appeared counts, Enter alone never decides anything that changes something, and
//! whatever is not an answer is said and asked again. A question can be taken back
//! while nobody types; timeouts are the engine's.

mod questions;
mod reading;

use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};

use console::Term;
use nix::unistd::{Uid, User};

use crate::engine::{Prompter, Question, Reply};
use crate::text::Style;
use questions::Dialogue;
use reading::{Keyboard, Withdrawal};

/// Asks at the terminal.
pub struct TerminalPrompter {
    enabled: bool,
    color: bool,
    /// One question at a time, also when the one before was taken back in mid-typing.
    turn: Mutex<()>,
    withdrawal: Withdrawal,
}

impl TerminalPrompter {
    /// For the terminal on standard input and error, unless nobody is to be asked.
    pub fn new(enabled: bool, color: bool) -> Self {
        Self { enabled, color, turn: Mutex::new(()), withdrawal: Withdrawal::default() }
    }
}

impl Prompter for TerminalPrompter {
    fn interactive(&self) -> bool {
        self.enabled && std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
    }

    fn ask(&self, question: Question) -> Option<Reply> {
        let asked = self.withdrawal.next();
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let term = Term::stderr();
        let style = Style { color: self.color, width: Some(usize::from(term.size().1)) };
        let mut keyboard = Keyboard::new(&term, &self.withdrawal, asked)?;
        Dialogue::new(&mut keyboard, style).ask(&question)
    }

    fn withdraw(&self) {
        self.withdrawal.withdraw();
    }
}

/// The account's name, by the system, not by a variable anyone can set.
pub fn login_name() -> String {
    let uid = Uid::current();
    User::from_uid(uid).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name)
}
