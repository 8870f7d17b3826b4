//! A web server that counts what reaches it.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};

/// Answers every request with `200 {"database": true}` and remembers it.
pub struct Hook {
    address: SocketAddr,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    requests: Mutex<Requests>,
    changed: Condvar,
}

#[derive(Default)]
struct Requests {
    /// Whole requests, head and body, by path.
    by_path: BTreeMap<String, Vec<String>>,
    open: usize,
    over: bool,
}

impl Hook {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Seen::default());
        let shared = Arc::clone(&seen);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if shared.requests.lock().unwrap().over {
                    return;
                }
                shared.requests.lock().unwrap().open += 1;
                let seen = Arc::clone(&shared);
                std::thread::spawn(move || {
                    serve(&stream, &seen);
                    seen.requests.lock().unwrap().open -= 1;
                    seen.changed.notify_all();
                });
            }
        });
        Self { address, seen }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How often a path was asked for. Requests of clients that are gone count as soon as
    /// they arrived whole, so this first waits for what is under way.
    pub fn count(&self, path: &str) -> usize {
        self.requests(path).len()
    }

    /// What was sent to a path, head and body.
    pub fn requests(&self, path: &str) -> Vec<String> {
        // Connections are taken in the order they came: those before this one are known after it.
        let mut own = TcpStream::connect(self.address).unwrap();
        own.write_all(b"GET /are-you-there HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap();
        let _ = own.read_to_end(&mut Vec::new());
        drop(own);
        let requests = self.seen.requests.lock().unwrap();
        let requests = self.seen.changed.wait_while(requests, |requests| requests.open > 0).unwrap();
        requests.by_path.get(path).cloned().unwrap_or_default()
    }
}

impl Drop for Hook {
    fn drop(&mut self) {
        self.seen.requests.lock().unwrap().over = true;
        let _ = TcpStream::connect(self.address);
    }
}

fn serve(stream: &TcpStream, seen: &Seen) {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    let mut length = 0;
    loop {
        let mut line = String::new();
        if !matches!(reader.read_line(&mut line), Ok(1..)) {
            return;
        }
        if let Some((_, value)) = line.split_once(':').filter(|(name, _)| name.eq_ignore_ascii_case("content-length")) {
            length = value.trim().parse().unwrap_or(0);
        }
        if line.trim().is_empty() {
            break;
        }
        head += &line;
    }
    let mut body = vec![0; length];
    if reader.read_exact(&mut body).is_err() {
        return;
    }
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let whole = format!("{head}\n{}", String::from_utf8_lossy(&body));
    seen.requests.lock().unwrap().by_path.entry(path).or_default().push(whole);
    let answer = "{\"database\": true}";
    let head =
        format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", answer.len());
    let _ = (&*stream).write_all((head + answer).as_bytes());
}
