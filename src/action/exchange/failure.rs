//! Why an exchange did not come about, in our words: with whom, why not, what to do next.
//!
//! Nobody else has to know the libraries' errors. Only host and port of an address are
//! named: the rest of it may be a key.

use std::error::Error;
use std::io;

use rustls::CertificateError;

use crate::outcome::{ErrorKind, StepError};
use crate::units::Duration;

/// What is to be said of the error; `transient` tells whether its cause may pass by itself.
pub(in crate::action) fn explained(error: &reqwest::Error, timeout: Duration) -> StepError {
    let peer = peer(error);
    let mut failed = if error.is_timeout() {
        StepError::new(ErrorKind::Http, format!("no complete answer from {peer} within {timeout}"))
            .hint("see whether it is up and not overloaded, and that no firewall drops what is sent to it")
    } else if let Some(problem) = tls(error) {
        secured(problem, &peer)
    } else if error.is_builder() {
        StepError::new(ErrorKind::Http, format!("this is not a request that can be sent: {}", innermost(error)))
            .hint("an address looks like https://HOST:PORT/PATH")
    } else if error.is_connect() {
        unconnected(error, &peer)
    } else {
        StepError::new(ErrorKind::Http, format!("the exchange with {peer} broke off: {}", broken(error)))
            .hint("its log should tell what happened there")
    };
    failed.transient = !error.is_builder() && tls(error).is_none();
    failed
}

fn peer(error: &reqwest::Error) -> String {
    let host_and_port = error.url().and_then(|url| Some((url.host_str()?, url.port_or_known_default()?)));
    host_and_port.map_or_else(|| "the server".to_owned(), |(host, port)| format!("{host}:{port}"))
}

fn unconnected(error: &reqwest::Error, peer: &str) -> StepError {
    let failed = |why: &str| StepError::new(ErrorKind::Http, format!("no connection to {peer}: {why}"));
    if causes(error).any(|cause| cause.to_string() == "dns error") {
        // The system has only words for this difference.
        return match innermost(error) {
            text if text.contains("Temporary failure") || text.contains("Try again") => {
                failed("the name servers do not answer").hint("look at this machine's network and at /etc/resolv.conf")
            }
            _ => failed("the host's name is not known").hint("check the spelling, and that this machine's name servers know the name"),
        };
    }
    match io_kind(error) {
        Some(io::ErrorKind::ConnectionRefused) => {
            failed("connection refused").hint("nothing accepts connections there: see whether the service runs, and check the port")
        }
        Some(io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable) => {
            failed("there is no way to it in the network").hint("check the address, the routes and the VPN of this machine")
        }
        Some(io::ErrorKind::TimedOut) => {
            failed("it does not answer").hint("see whether the machine is up and no firewall drops what is sent to it")
        }
        Some(
            io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted | io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof,
        ) => failed("it hung up at once").hint("see whether a proxy or a firewall stands between, and whether the port is the right one"),
        _ => failed(&innermost(error)),
    }
}

fn broken(error: &reqwest::Error) -> String {
    match io_kind(error) {
        Some(io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted | io::ErrorKind::BrokenPipe) => "it hung up".into(),
        _ => match innermost(error) {
            text if text.starts_with("connection closed before") => "it hung up before its answer was complete".into(),
            text => text,
        },
    }
}

/// TLS came to nothing.
fn secured(problem: &rustls::Error, peer: &str) -> StepError {
    let (why, hint) = match problem {
        rustls::Error::InvalidCertificate(certificate) => distrusted(certificate),
        rustls::Error::InvalidMessage(_) => {
            ("it does not speak TLS".to_owned(), "write http:// if it is to be plain, or name the port of its TLS".to_owned())
        }
        // The only one that has nothing to do with the server.
        rustls::Error::General(text) if text.contains("No CA certificates") => (
            "this machine trusts no certificate authority at all".to_owned(),
            "install ca-certificates, or name a file of authorities in SSL_CERT_FILE".to_owned(),
        ),
        other => (format!("TLS failed: {other}"), "see which TLS versions and client certificates the server demands".to_owned()),
    };
    StepError::new(ErrorKind::Http, format!("no secure connection to {peer}: {why}")).hint(hint)
}

fn distrusted(problem: &CertificateError) -> (String, String) {
    let (why, hint) = match problem {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => (
            "its certificate is signed by nobody this machine trusts",
            "let this machine trust its authority (update-ca-certificates), or name a file with it in SSL_CERT_FILE",
        ),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            ("its certificate has expired", "have it renewed; if it is valid, this machine's clock is wrong")
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            ("its certificate is not valid yet", "see whether this machine's clock is right")
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            ("its certificate is for another name", "use the name the certificate was issued for, or have one issued for this name")
        }
        CertificateError::Revoked => ("its certificate was revoked", "have a new one installed there"),
        other => return (format!("its certificate is not valid: {other}"), "have a valid one installed there".to_owned()),
    };
    (why.to_owned(), hint.to_owned())
}

/// Errors of input and output hide what they wrap: their own source is the source of that.
fn causes(error: &reqwest::Error) -> impl Iterator<Item = &(dyn Error + 'static)> {
    let mut next = error.source();
    std::iter::from_fn(move || {
        let cause = next?;
        next = match cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(wrapped) => Some(wrapped),
            None => cause.source(),
        };
        Some(cause)
    })
}

/// What went wrong with TLS.
fn tls(error: &reqwest::Error) -> Option<&rustls::Error> {
    causes(error).find_map(|cause| cause.downcast_ref())
}

/// What kind of error of input and output lies deepest.
fn io_kind(error: &reqwest::Error) -> Option<io::ErrorKind> {
    causes(error).filter_map(|cause| cause.downcast_ref::<io::Error>()).last().map(io::Error::kind)
}

/// The last cause says most; those before it repeat that something failed.
fn innermost(error: &reqwest::Error) -> String {
    causes(error).last().map_or_else(|| "no reason is given".to_owned(), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::super::{Redirects, client};
    use super::*;

    async fn said(url: &str) -> String {
        let timeout = Duration::from_secs(30);
        let sent = client(Redirects::None, timeout).unwrap().get(url).send().await;
        let error = explained(&sent.unwrap_err(), timeout);
        format!("{} ({}; transient: {})", error.message, error.hints.join(" "), error.transient)
    }

    #[tokio::test]
    async fn an_address_that_is_none() {
        insta::assert_snapshot!(said("chat.example.com/hook").await, @"this is not a request that can be sent: relative URL without a base (an address looks like https://HOST:PORT/PATH; transient: false)");
        insta::assert_snapshot!(said("ftp://chat.example.com/hook").await, @"this is not a request that can be sent: URL scheme is not allowed (an address looks like https://HOST:PORT/PATH; transient: false)");
    }

    #[tokio::test]
    async fn a_server_that_hangs_up() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = tokio::io::AsyncReadExt::read(&mut stream, &mut [0; 4096]).await;
            }
        });
        insta::assert_snapshot!(said(&format!("http://{address}/key")).await.replace(&address, "SERVER"), @"the exchange with SERVER broke off: it hung up before its answer was complete (its log should tell what happened there; transient: true)");
        insta::assert_snapshot!(said(&format!("https://{address}/key")).await.replace(&address, "SERVER"), @"no connection to SERVER: it hung up at once (see whether a proxy or a firewall stands between, and whether the port is the right one; transient: true)");
    }

    #[test]
    fn what_may_be_wrong_with_a_certificate() {
        let all = [
            CertificateError::UnknownIssuer,
            CertificateError::Expired,
            CertificateError::NotValidYet,
            CertificateError::NotValidForName,
            CertificateError::Revoked,
            CertificateError::UnhandledCriticalExtension,
        ];
        let said = all.map(|problem| {
            let error = secured(&rustls::Error::InvalidCertificate(problem), "db.example.com:443");
            format!("{}\n  {}\n", error.message, error.hints.join("\n"))
        });
        insta::assert_snapshot!(said.concat(), @"
        no secure connection to db.example.com:443: its certificate is signed by nobody this machine trusts
          let this machine trust its authority (update-ca-certificates), or name a file with it in SSL_CERT_FILE
        no secure connection to db.example.com:443: its certificate has expired
          have it renewed; if it is valid, this machine's clock is wrong
        no secure connection to db.example.com:443: its certificate is not valid yet
          see whether this machine's clock is right
        no secure connection to db.example.com:443: its certificate is for another name
          use the name the certificate was issued for, or have one issued for this name
        no secure connection to db.example.com:443: its certificate was revoked
          have a new one installed there
        no secure connection to db.example.com:443: its certificate is not valid: UnhandledCriticalExtension
          have a valid one installed there
        ");
    }
}
