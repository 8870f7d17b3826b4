//! The two forms of a connection string: a URL, and `key=value` pairs.

use percent_encoding::percent_decode_str;

use super::{Settings, Unusable};

/// Takes either form apart; names are libpq's.
pub fn parse(text: &str) -> Result<Settings, Unusable> {
    let text = text.trim();
    match ["postgresql://", "postgres://"].iter().find_map(|scheme| text.strip_prefix(scheme)) {
        Some(rest) => url(rest),
        None if text.contains('=') => pairs(text),
        // The text is not shown: what is not understood may hold a password.
        None => Err(Unusable::new("the connection's url is neither a database URL nor key=value pairs")
            .hint("Write postgres://user@host:5432/database, host=… dbname=…, or sqlite:path.")),
    }
}

fn url(rest: &str) -> Result<Settings, Unusable> {
    let mut settings = Settings::new();
    let (rest, query) = rest.split_once('?').map_or((rest, None), |(rest, query)| (rest, Some(query)));
    let (authority, database) = rest.split_once('/').map_or((rest, None), |(authority, path)| (authority, Some(path)));
    let (user, hosts) = authority.rsplit_once('@').map_or((None, authority), |(user, hosts)| (Some(user), hosts));
    if let Some(user) = user {
        let (name, password) = user.split_once(':').map_or((user, None), |(name, password)| (name, Some(password)));
        put(&mut settings, "user", name)?;
        put(&mut settings, "password", password.unwrap_or_default())?;
    }
    host_list(&mut settings, hosts)?;
    put(&mut settings, "dbname", database.unwrap_or_default())?;
    for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').ok_or_else(|| Unusable::new("a parameter behind the `?` of the URL has no value"))?;
        match (decoded(name)?.as_str(), value) {
            // JDBC's spelling, which libpq accepts.
            ("ssl", "true") => put(&mut settings, "sslmode", "require")?,
            (name, value) => put(&mut settings, name, value)?,
        }
    }
    Ok(settings)
}

fn host_list(settings: &mut Settings, hosts: &str) -> Result<(), Unusable> {
    let mut names = Vec::new();
    let mut ports = Vec::new();
    for host in hosts.split(',') {
        let (name, port) = match host.strip_prefix('[') {
            Some(rest) => {
                let (address, port) = rest.split_once(']').ok_or_else(|| Unusable::new("an IPv6 address in the URL has no closing `]`"))?;
                (address, port.strip_prefix(':'))
            }
            None => host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port))),
        };
        names.push(decoded(name)?);
        ports.push(decoded(port.unwrap_or_default())?);
    }
    if names.iter().any(|name| !name.is_empty()) {
        settings.insert("host".into(), names.join(","));
    }
    if ports.iter().any(|port| !port.is_empty()) {
        settings.insert("port".into(), ports.join(","));
    }
    Ok(())
}

fn put(settings: &mut Settings, name: &str, encoded: &str) -> Result<(), Unusable> {
    if !encoded.is_empty() {
        settings.insert(name.to_owned(), decoded(encoded)?);
    }
    Ok(())
}

fn decoded(text: &str) -> Result<String, Unusable> {
    let invalid = || Unusable::new("the URL has a percent escape that is not UTF-8 text, or holds a NUL");
    let text = percent_decode_str(text).decode_utf8().map_err(|_| invalid())?;
    if text.contains('\0') { Err(invalid()) } else { Ok(text.into_owned()) }
}

/// `key = value`, values perhaps in single quotes, `\` before a quote or itself.
fn pairs(text: &str) -> Result<Settings, Unusable> {
    let mut settings = Settings::new();
    let mut letters = text.chars().peekable();
    loop {
        while letters.next_if(|letter| letter.is_whitespace()).is_some() {}
        if letters.peek().is_none() {
            return Ok(settings);
        }
        let mut name = String::new();
        while let Some(letter) = letters.next_if(|letter| !letter.is_whitespace() && *letter != '=') {
            name.push(letter);
        }
        while letters.next_if(|letter| letter.is_whitespace()).is_some() {}
        if letters.next() != Some('=') {
            return Err(Unusable::new("a word in the connection string has no `=` after it").hint("Write host=… dbname=… user=…"));
        }
        while letters.next_if(|letter| letter.is_whitespace()).is_some() {}
        let value = value(&mut letters).ok_or_else(|| Unusable::new(format!("the value of `{name}` has no closing quote")))?;
        settings.insert(name, value);
    }
}

fn value(letters: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<String> {
    let mut value = String::new();
    let quoted = letters.next_if_eq(&'\'').is_some();
    loop {
        match letters.next_if(|letter| quoted || !letter.is_whitespace()) {
            Some('\\') => value.extend(letters.next()),
            Some('\'') if quoted => return Some(value),
            Some(letter) => value.push(letter),
            None => return (!quoted).then_some(value),
        }
    }
}
