//! The ways a secret may be written in output.
//!
//! The text itself and each of its lines; hex; base64 in both alphabets, padded or
//! not, also in the middle of longer base64 text (up to two characters at each end
//! then mix with the neighbours and stay); percent and form encoding as the common
//! libraries do it; inside JSON, SQL and shell quotes.

use std::fmt::Write;

use base64::Engine;
use base64::alphabet::{Alphabet, STANDARD, URL_SAFE};
use base64::engine::general_purpose::{GeneralPurpose, NO_PAD, PAD};
use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, percent_encode};

/// Shorter fragments (a line `}`, three characters of base64) are not telling, and
/// occur everywhere.
const SHORTEST_FRAGMENT: usize = 4;

/// RFC 3986: all but the unreserved characters.
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// Python's `quote`.
const BUT_SLASH: &AsciiSet = &UNRESERVED.remove(b'/');
/// JavaScript's `encodeURIComponent`.
const URI_COMPONENT: &AsciiSet = &UNRESERVED.remove(b'!').remove(b'\'').remove(b'(').remove(b')').remove(b'*');
/// WHATWG form data, with the space still to become `+`.
const FORM: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'*').remove(b' ');
/// WHATWG query, path and user information.
const QUERY: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'<').add(b'>');
const PATH: &AsciiSet = &QUERY.add(b'?').add(b'`').add(b'{').add(b'}');
/// JavaScript's `encodeURI`.
const WHOLE_URI: &AsciiSet = &QUERY.remove(b'#').add(b'%').add(b'[').add(b'\\').add(b']').add(b'^').add(b'`').add(b'{').add(b'|').add(b'}');
const USER: &AsciiSet = &PATH.add(b'/').add(b':').add(b';').add(b'=').add(b'@').add(b'[').add(b'\\').add(b']').add(b'^').add(b'|');

/// All forms of a secret, never empty ones.
pub(super) fn of(secret: &str) -> Vec<Vec<u8>> {
    let mut forms = Vec::new();
    let trimmed = secret.trim_end_matches(['\r', '\n']);
    for whole in [secret, trimmed] {
        forms.push(whole.to_owned());
        encoded(whole, &mut forms);
    }
    if trimmed.contains('\n') {
        for line in trimmed.lines().map(str::trim).filter(|line| line.len() >= SHORTEST_FRAGMENT) {
            forms.push(line.to_owned());
            encoded(line, &mut forms);
        }
    }
    forms.retain(|form| !form.is_empty());
    forms.into_iter().map(String::into_bytes).collect()
}

fn encoded(text: &str, forms: &mut Vec<String>) {
    let mut found = base64(text.as_bytes());
    found.extend(hex(text.as_bytes()));
    found.retain(|form| form.len() >= SHORTEST_FRAGMENT);
    forms.append(&mut found);
    forms.extend(percent(text));
    forms.extend(quoted(text));
}

fn base64(bytes: &[u8]) -> Vec<String> {
    let mut forms = Vec::new();
    for alphabet in [&STANDARD, &URL_SAFE] {
        for offset in 0..3 {
            forms.extend(base64_at(alphabet, offset, bytes));
        }
        // Wrapped as PEM and as the `base64` program do it.
        let whole = GeneralPurpose::new(alphabet, NO_PAD).encode(bytes);
        for width in [64, 76].into_iter().filter(|width| whole.len() > *width) {
            forms.extend(whole.as_bytes().chunks(width).map(|line| String::from_utf8_lossy(line).into_owned()));
        }
    }
    forms
}

/// The characters that depend on these bytes alone when `offset` other bytes stand
/// before them: in the middle of the text, and at its end.
fn base64_at(alphabet: &Alphabet, offset: usize, bytes: &[u8]) -> [String; 3] {
    let mut placed = vec![0; offset];
    placed.extend_from_slice(bytes);
    let mixed_before = [0, 2, 3][offset];
    let mixed_after = usize::from(!placed.len().is_multiple_of(3));
    let padded = GeneralPurpose::new(alphabet, PAD).encode(&placed);
    let open = padded.trim_end_matches('=');
    let from = mixed_before.min(open.len());
    let middle = &open[from..(open.len() - mixed_after).max(from)];
    [middle.to_owned(), open[from..].to_owned(), padded[from..].to_owned()]
}

fn hex(bytes: &[u8]) -> [String; 2] {
    let lower = bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    });
    let upper = lower.to_uppercase();
    [lower, upper]
}

fn percent(text: &str) -> Vec<String> {
    let mut forms: Vec<String> = [NON_ALPHANUMERIC, UNRESERVED, BUT_SLASH, URI_COMPONENT, WHOLE_URI, QUERY, PATH, USER]
        .into_iter()
        .map(|set| percent_encode(text.as_bytes(), set).to_string())
        .collect();
    forms.push(percent_encode(text.as_bytes(), FORM).to_string().replace(' ', "+"));
    let lower: Vec<String> = forms.iter().map(|form| lower_case_escapes(form)).collect();
    forms.extend(lower);
    forms
}

/// `%2F` as `%2f`.
fn lower_case_escapes(encoded: &str) -> String {
    let mut parts = encoded.split('%');
    let mut lower = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        // A set that leaves `%` alone is not followed by two digits everywhere.
        let (digits, rest) = part.split_at_checked(2).unwrap_or(("", part));
        lower.push('%');
        lower.push_str(&digits.to_lowercase());
        lower.push_str(rest);
    }
    lower
}

fn quoted(text: &str) -> Vec<String> {
    let json = serde_json::to_string(text).unwrap_or_default();
    let json = json[1..json.len() - 1].to_owned();
    let ascii = only_ascii(&json);
    let slashed = [json.replace('/', "\\/"), ascii.replace('/', "\\/")];
    let sql = text.replace('\'', "''");
    let shell = text.replace('\'', r"'\''");
    [json, ascii, sql, shell].into_iter().chain(slashed).collect()
}

fn only_ascii(json: &str) -> String {
    let mut units = [0; 2];
    json.chars().fold(String::new(), |mut text, letter| {
        if letter.is_ascii() {
            text.push(letter);
        } else {
            for unit in letter.encode_utf16(&mut units) {
                let _ = write!(text, "\\u{unit:04x}");
            }
        }
        text
    })
}
