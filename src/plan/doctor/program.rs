//! Programs, client programs and servers: whether they are there.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use reqwest::Url;

use super::connection::Server;
use super::{Finding, Surroundings, Verdict};
use crate::process::{client_directories, find_program, major_version};

const TIMEOUT: Duration = Duration::from_secs(5);

/// A program, found as a step finds it.
pub(super) fn program(name: &str, directory: &Path, path: Option<&str>, runs_script: bool, surroundings: &Surroundings) -> Finding {
    match find(name, directory, path, surroundings) {
        Ok(file) if nix::unistd::eaccess(&file, nix::unistd::AccessFlags::X_OK).is_err() => {
            Finding::new(Verdict::Problem, "program", format!("{} cannot be executed", file.display())).advise("chmod +x")
        }
        Ok(file) if runs_script => {
            Finding::new(Verdict::Ok, "program", format!("{}; which programs its script starts is not known", file.display()))
        }
        Ok(file) => Finding::new(Verdict::Ok, "program", file.display().to_string()),
        Err(finding) => *finding,
    }
}

/// A client program that is installed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Installed {
    file: PathBuf,
    version: String,
    major: u32,
}

/// A client program and its version beside the server's.
pub(super) async fn client_program(name: &str, server: Option<&Server>, surroundings: &Surroundings) -> Finding {
    let found = installed(name, surroundings).await;
    let Some(newest) = found.iter().max_by_key(|one| one.major).cloned() else {
        return Finding::new(Verdict::Problem, "program", format!("`{name}` is installed neither in PATH nor where distributions put it"))
            .advise("install PostgreSQL's client programs of the server's version");
    };
    let Some(server) = server else {
        let text = format!("{}, version {}; the server's is not known", newest.file.display(), newest.version);
        return Finding::new(Verdict::NotCheckable, "program", text);
    };
    let major = server.major_version;
    match fitting(found, major) {
        Some(one) => {
            Finding::new(Verdict::Ok, "program", format!("{}, version {}; the server has {major}", one.file.display(), one.version))
        }
        None => {
            let text = format!("{}, version {}, is older than the server, which has {major}", newest.file.display(), newest.version);
            Finding::new(Verdict::Problem, "program", text)
                .advise(format!("install the client programs of PostgreSQL {major}, e.g. `apt install postgresql-client-{major}`"))
        }
    }
}

/// As a dump chooses: the server's version, else the oldest of the newer ones, PATH's first.
fn fitting(found: Vec<Installed>, server: u32) -> Option<Installed> {
    found.into_iter().filter(|one| one.major >= server).min_by_key(|one| one.major)
}

async fn installed(name: &str, surroundings: &Surroundings) -> Vec<Installed> {
    let path = surroundings.environment.variables.get("PATH").unwrap_or_default();
    let directories = std::env::split_paths(path).map(|directory| surroundings.directory.join(directory)).chain(client_directories());
    let mut found = Vec::new();
    for file in directories.map(|directory| directory.join(name)).filter(|file| file.exists()) {
        if let Some((version, major)) = version(&file).await {
            found.push(Installed { file, version, major });
        }
    }
    found
}

/// A server's name and port; nothing is sent to it.
pub(super) async fn endpoint(subject: &str, url: &str, surroundings: &Surroundings) -> Finding {
    let parsed = Url::parse(url).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
    let Some((host, port)) = parsed.as_ref().and_then(|url| Some((url.host_str()?, url.port_or_known_default()?))) else {
        return Finding::new(Verdict::Problem, subject, "its address is no http:// or https:// URL");
    };
    let peer = format!("{host}:{port}");
    if let Some(proxy) = ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"]
        .into_iter()
        .find(|name| surroundings.environment.variables.get(name).is_some())
    {
        return Finding::new(Verdict::NotCheckable, subject, format!("{peer} may be reached through a proxy ({proxy})"));
    }
    let connected = tokio::time::timeout(TIMEOUT, connect(host, port)).await;
    match connected {
        Ok(Ok(())) => Finding::new(Verdict::Ok, subject, format!("{peer} answers")),
        Ok(Err((reason, advice))) => Finding::new(Verdict::Problem, subject, format!("no connection to {peer}: {reason}")).advise(advice),
        Err(_) => Finding::new(Verdict::Problem, subject, format!("no connection to {peer} within 5s"))
            .advise("see whether the machine is up and no firewall drops what is sent to it"),
    }
}

async fn connect(host: &str, port: u16) -> Result<(), (String, &'static str)> {
    let name = host.trim_start_matches('[').trim_end_matches(']');
    let addresses = tokio::net::lookup_host((name, port)).await.map_err(|_| {
        ("the host's name is not known".to_owned(), "check the spelling, and that this machine's name servers know the name")
    })?;
    let mut last = "its name has no address".to_owned();
    for address in addresses {
        match tokio::net::TcpStream::connect(address).await {
            Ok(_) => return Ok(()),
            Err(error) => last = error.to_string().split(" (os error").next().unwrap_or_default().to_lowercase(),
        }
    }
    Err((last, "see whether the service runs, and check the port"))
}

fn find(name: &str, directory: &Path, path: Option<&str>, surroundings: &Surroundings) -> Result<PathBuf, Box<Finding>> {
    let path = path.or_else(|| surroundings.environment.variables.get("PATH"));
    find_program(name, directory, path.map(OsStr::new)).map_err(|error| {
        let finding = Finding::new(Verdict::Problem, "program", error.to_string());
        Box::new(finding.advise(if name.contains('/') {
            "relative names begin in the directory where the step runs"
        } else {
            "install it, or add its directory to PATH"
        }))
    })
}

/// `pg_dump (PostgreSQL) 15.16 (Debian …)`: the version, and its first number.
async fn version(file: &Path) -> Option<(String, u32)> {
    let mut command = tokio::process::Command::new(file);
    command.arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(TIMEOUT, command.output()).await.ok()?.ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let version = text.split_whitespace().find(|word| word.starts_with(|letter: char| letter.is_ascii_digit()))?;
    Some((version.to_owned(), major_version(&text)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_nearest_to_the_server_is_taken() {
        let installed = |majors: &[u32]| -> Vec<Installed> {
            majors.iter().map(|major| Installed { file: format!("/{major}").into(), version: major.to_string(), major: *major }).collect()
        };
        let chosen = |majors: &[u32]| fitting(installed(majors), 15).map(|one| one.major);
        assert_eq!((chosen(&[14, 17, 15, 16]), chosen(&[14, 17, 16]), chosen(&[13, 14]), chosen(&[])), (Some(15), Some(16), None, None));
    }
}
