//! Gives the terminal back as it was found.
//!
//! A prompt switches echo off and may hide the cursor; whoever leaves in the middle of
//! one, from whatever thread, restores both first.

use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::termios::{SetArg, Termios, tcgetattr, tcsetattr};
use nix::unistd::{getpgrp, tcgetpgrp};

/// How the terminal was when the program began. Cheap to clone.
#[derive(Debug, Clone)]
pub struct TerminalGuard(Option<Arc<Mutex<Termios>>>);

impl TerminalGuard {
    /// Remembers the terminal's settings; without a terminal it does nothing ever.
    pub fn new() -> Self {
        let stdin = std::io::stdin();
        let found = stdin.is_terminal().then(|| tcgetattr(&stdin).ok()).flatten();
        Self(found.map(|settings| Arc::new(Mutex::new(settings))))
    }

    /// Puts them back and shows the cursor.
    pub fn restore(&self) {
        let Some(found) = &self.0 else { return };
        let stdin = std::io::stdin();
        // From the background this would stop the program (SIGTTOU) instead of ending it.
        if tcgetpgrp(&stdin).ok() != Some(getpgrp()) {
            return;
        }
        let _ = tcsetattr(&stdin, SetArg::TCSANOW, &found.lock().unwrap_or_else(PoisonError::into_inner));
        let mut out = std::io::stderr();
        if out.is_terminal() {
            let _ = out.write_all(b"\x1b[?25h");
        }
    }
}

impl Default for TerminalGuard {
    fn default() -> Self {
        Self::new()
    }
}
