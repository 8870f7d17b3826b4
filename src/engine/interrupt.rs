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
/// dispatcher is doing: it may hang in a disk or a terminal, so signals have a thread of
/// their own.
pub fn listen(leave: impl Fn(Signal) + Send + 'static) -> std::io::Result<mpsc::UnboundedReceiver<Signal>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let registering = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    drop(registering);
    let (sender, receiver) = mpsc::unbounded_channel();
    let forward = async move {
        for count in 1_u32.. {
            let received = tokio::select! {
                Some(()) = interrupt.recv() => Signal::Interrupt,
                Some(()) = terminate.recv() => Signal::Terminate,
                Some(()) = hangup.recv() => Signal::Hangup,
                else => return,
            };
            if count >= 3 {
                leave(received);
            }
            let _ = sender.send(received);
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(move || runtime.block_on(forward))?;
    Ok(receiver)
}
