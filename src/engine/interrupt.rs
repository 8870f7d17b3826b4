//! Signals, escalating: finish what runs, then cancel it, then leave at once.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// What asked the run to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Ctrl+C.
    Interrupt,
    /// `kill`, a service manager.
    Terminate,
    /// The terminal was closed.
    Hangup,
}

impl Signal {
    /// Its usual name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
            Self::Hangup => "SIGHUP",
        }
    }
}

/// Forwards signals to the dispatcher. The third one calls `leave`, whatever the
/// dispatcher is doing: it may hang in a disk or a terminal.
pub fn listen(leave: impl Fn(Signal) + Send + 'static) -> std::io::Result<mpsc::UnboundedReceiver<Signal>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut count = 0;
        loop {
            let received = tokio::select! {
                Some(()) = interrupt.recv() => Signal::Interrupt,
                Some(()) = terminate.recv() => Signal::Terminate,
                Some(()) = hangup.recv() => Signal::Hangup,
                else => return,
            };
            count += 1;
            if count >= 3 {
                leave(received);
            }
            let _ = sender.send(received);
        }
    });
    Ok(receiver)
}
