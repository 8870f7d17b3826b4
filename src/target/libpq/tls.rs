//! How much encryption is asked for, and whom it trusts.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;

use super::{Settings, Unusable};
use crate::target::spec::Variables;

/// Encryption and what is verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// How much of it.
    pub mode: TlsMode,
    /// Trusted certificates; without a file the system's.
    pub root: Option<PathBuf>,
    /// Our own certificate and key.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// libpq's `sslmode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsMode {
    /// Never.
    Disable,
    /// Only where the server insists.
    Allow,
    /// Where the server can.
    Prefer,
    /// Always, with any certificate.
    Require,
    /// Always, with a certificate that a trusted one has signed.
    VerifyCa,
    /// The same, and the certificate is for this host.
    VerifyFull,
}

impl TlsMode {
    /// As libpq writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Allow => "allow",
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        }
    }

    /// Whether it looks at the server's certificate.
    pub fn verifies(self) -> bool {
        matches!(self, Self::VerifyCa | Self::VerifyFull)
    }
}

/// What the settings and the files in the home directory ask for.
pub fn tls(settings: &Settings, variables: &Variables) -> Result<Tls, Unusable> {
    use TlsMode::{Allow, Disable, Prefer, Require, VerifyCa, VerifyFull};
    let mode = match settings.get("sslmode") {
        None => Prefer,
        Some(written) => [Disable, Allow, Prefer, Require, VerifyCa, VerifyFull]
            .into_iter()
            .find(|known| known.as_str() == written)
            .ok_or_else(|| {
                Unusable::new(format!("sslmode `{written}` is unknown"))
                    .hint("It is disable, allow, prefer, require, verify-ca or verify-full.")
            })?,
    };
    let home = variables.home().map(|home| home.join(".postgresql"));
    let usual = |name: &str| home.as_ref().map(|home| home.join(name)).filter(|path| path.exists());
    let (mode, root) = match settings.get("sslrootcert").map(String::as_str) {
        Some("system") if !mode.verifies() && settings.contains_key("sslmode") && mode != Require => {
            return Err(
                Unusable::new(format!("sslmode {} is too weak for sslrootcert=system", mode.as_str())).hint("Use sslmode=verify-full.")
            );
        }
        Some("system") => (VerifyFull, None),
        Some(path) => (mode, Some(PathBuf::from(path))),
        None => (mode, usual("root.crt")),
    };
    // As libpq does: with trusted certificates at hand, `require` verifies too.
    let mode = if mode == Require && root.as_ref().is_some_and(|root| root.exists()) { VerifyCa } else { mode };
    if mode.verifies() && settings.get("sslrootcert").is_none_or(|written| written != "system") {
        match &root {
            None => {
                return Err(Unusable::new(format!(
                    "sslmode={} needs trusted certificates, and ~/.postgresql/root.crt does not exist",
                    mode.as_str()
                ))
                .hint("Give sslrootcert=FILE, or sslrootcert=system for those of the operating system."));
            }
            Some(root) if !root.exists() => return Err(Unusable::new(format!("sslrootcert {} does not exist", root.display()))),
            Some(_) => {}
        }
    }
    Ok(Tls { mode, root, client: client_certificate(settings, &usual)? })
}

fn client_certificate(settings: &Settings, usual: &dyn Fn(&str) -> Option<PathBuf>) -> Result<Option<(PathBuf, PathBuf)>, Unusable> {
    if settings.get("sslcertmode").is_some_and(|mode| mode == "disable") {
        return Ok(None);
    }
    let given = |name: &str| settings.get(name).map(PathBuf::from);
    let Some(certificate) = given("sslcert").or_else(|| usual("postgresql.crt")) else { return Ok(None) };
    let Some(key) = given("sslkey").or_else(|| usual("postgresql.key")) else {
        return Err(
            Unusable::new(format!("there is a client certificate ({}) but no key", certificate.display())).hint("Give sslkey=FILE.")
        );
    };
    for file in [&certificate, &key] {
        if !file.exists() {
            return Err(Unusable::new(format!("{} does not exist", file.display())));
        }
    }
    if let Ok(metadata) = std::fs::metadata(&key) {
        let open = metadata.permissions().mode() & if metadata.uid() == 0 { 0o037 } else { 0o077 };
        if open != 0 {
            return Err(Unusable::new(format!("the client key {} may be read by others", key.display()))
                .hint(format!("Run: chmod 0600 {}", key.display())));
        }
    }
    Ok(Some((certificate, key)))
}
