//! What counts as a secret although nobody declared it. It errs to the safe side.

use std::sync::LazyLock;

use regex::Regex;

/// Anywhere in a name.
const PARTS: [&str; 8] = ["KEY", "SECRET", "TOKEN", "PASSW", "PASSPHRASE", "CREDENTIAL", "PRIVATE", "WEBHOOK"];
/// As a word between underscores.
const WORDS: [&str; 9] = ["PWD", "PASS", "AUTH", "DSN", "SALT", "COOKIE", "PIN", "OTP", "SIGNATURE"];
/// Directories, whatever they end in.
const HARMLESS: [&str; 2] = ["PWD", "OLDPWD"];

/// A password in a URL or in a connection string, a private key, or a signed token.
static VALUE: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(
        r"(?x)
        ://[^/?\#\s:@]*:[^/?\#\s@]+@
        | (?i:\b(?:password|passwd|pwd|sslpassword|api_?key|token|secret)\s*=\s*\S)
        | -----BEGIN[\ A-Z]*PRIVATE\ KEY
        | \beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+\.",
    )
    .expect("the pattern is fixed and valid")
});

/// Whether a variable's name or its value looks like a secret.
pub(in crate::action) fn is_sensitive(name: &str, value: &str) -> bool {
    let upper = name.to_ascii_uppercase();
    if HARMLESS.contains(&upper.as_str()) {
        return VALUE.is_match(value);
    }
    PARTS.iter().any(|part| upper.contains(part)) || upper.split('_').any(|word| WORDS.contains(&word)) || VALUE.is_match(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_values_give_secrets_away() {
        for name in ["JWT_SECRET", "SUPABASE_ANON_KEY", "apikey", "PGPASSWORD", "DB_PWD", "SENTRY_DSN", "SLACK_WEBHOOK_URL", "BASIC_AUTH"] {
            assert!(is_sensitive(name, "x"), "{name}");
        }
        for value in [
            "postgres://app:hunter2@db/stock",
            "redis://:hunter2@cache",
            "host=db password=hunter2",
            "https://x.example/?api_key=1",
            "-----BEGIN RSA PRIVATE KEY-----\nabc",
            "eyJhbGciOiJIUzI1NiJ9.eyJyb2xlIjoiYW5vbiJ9.x",
        ] {
            assert!(is_sensitive("ANY", value), "{value}");
        }
        for (name, value) in [
            ("PWD", "/srv/app"),
            ("NODE_ENV", "production"),
            ("DATABASE_URL", "postgres://db.example:5432/stock"),
            ("CORS_ORIGIN", "https://a.example"),
            ("PATH", "/usr/bin:/bin"),
            ("MAIL_FROM", "postmaster@example.com"),
        ] {
            assert!(!is_sensitive(name, value), "{name}");
        }
    }
}
