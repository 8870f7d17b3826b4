//! What one playbook file sees: its parameters, secrets, connections and channels.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::action::Channels;
use crate::playbook::Retry;
use crate::template::Values;
use crate::units::Duration;

/// The world of one playbook.
#[derive(Debug, Clone)]
pub struct Scope {
    /// `""` for the main playbook, `nested/` for an included one.
    pub prefix: String,
    /// Parameters, secrets, and (once known) connections.
    pub values: Values,
    /// The playbook's names of connections, and the plan's.
    pub connections: Arc<BTreeMap<String, String>>,
    /// The connection a step uses when it names none.
    pub default_connection: Option<String>,
    /// Where `notify` sends messages.
    pub channels: Arc<Channels>,
    /// The longest a step may take.
    pub timeout: Option<Duration>,
    /// The longest a statement waits for one lock.
    pub lock_timeout: Option<Duration>,
    /// The longest a statement may take.
    pub statement_timeout: Option<Duration>,
    /// When a failed step is tried again.
    pub retry: Option<Retry>,
}

impl Scope {
    /// The prefix of the playbook that includes this one, and the step there that does.
    pub fn includer(&self) -> Option<(&str, &str)> {
        let path = self.prefix.strip_suffix('/')?;
        Some(path.rfind('/').map_or(("", path), |slash| (&path[..=slash], &path[slash + 1..])))
    }
}
