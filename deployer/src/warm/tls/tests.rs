//! Requests to workers that speak TLS, with certificates that `openssl` makes.

use std::{fs, net::Ipv4Addr, process::Command};

use rustls::{
    ServerConfig,
    pki_types::{PrivateKeyDer, pem::PemObject as _},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::config::Request;

const WITHIN: Duration = Duration::from_secs(20);
const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// A folder with `key.pem`, and `cert.pem` for these names, which ends in so many days, and is as one of an authority.
fn certificate(names: &str, days: i32) -> tempfile::TempDir {
    certificate_of("TRUE", names, days)
}

fn certificate_of(ca: &str, names: &str, days: i32) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let names = if names.is_empty() { String::new() } else { format!("subjectAltName={names}\n") };
    fs::write(folder.path().join("more"), format!("basicConstraints=critical,CA:{ca}\n{names}")).unwrap();
    let script = format!(
        "openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout key.pem -subj /CN=web -out csr.pem\n\
         openssl x509 -req -in csr.pem -signkey key.pem -days {days} -extfile more -out cert.pem"
    );
    let mut command = Command::new("sh");
    let output = command.args(["-ec", &script]).current_dir(folder.path()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    folder
}

/// Has the certificate of a folder.
struct Server {
    at: SocketAddr,
    task: JoinSet<()>,
}

impl Server {
    async fn new(folder: &tempfile::TempDir) -> Self {
        let own = authorities(&folder.path().join("cert.pem")).unwrap();
        let key = PrivateKeyDer::from_pem_file(folder.path().join("key.pem")).unwrap();
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        let acceptor = TlsAcceptor::from(Arc::new(builder.with_single_cert(own, key).unwrap()));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let at = listener.local_addr().unwrap();
        let mut task = JoinSet::new();
        task.spawn(async move {
            loop {
                let (peer, _) = listener.accept().await.unwrap();
                let Ok(mut peer) = acceptor.accept(peer).await else { continue };
                let mut text = [0; 4096];
                let size = peer.read(&mut text).await.unwrap_or(0);
                let host = String::from_utf8_lossy(&text[..size]).to_lowercase();
                let is_named = host.contains("host: web.internal") || host.contains("host: 127.0.0.1");
                // It closes without a word of TLS, as Python's does.
                let _ =
                    peer.write_all(if is_named { OK } else { b"HTTP/1.1 421 No\r\ncontent-length: 0\r\n\r\n" }).await;
            }
        });
        Self { at, task }
    }
}

async fn ask(worker: SocketAddr, tls: Option<Tls>) -> String {
    let (method, path) = ("GET".to_owned(), "/".to_owned());
    let request =
        Request { method, tls: tls.map(Arc::new), path, headers: Vec::new(), body: String::new(), status: None };
    match crate::warm::ask(worker, &request, WITHIN).await {
        Ok(()) => "ok".to_owned(),
        Err(why) if why.contains("CAP_NET_ADMIN") => "no capability".to_owned(),
        Err(why) => why,
    }
}

fn tls(ca: Option<&tempfile::TempDir>, server_name: Option<&str>) -> Option<Tls> {
    let ca = ca.map(|folder| folder.path().join("cert.pem"));
    Some(Tls { ca, server_name: server_name.map(str::to_owned) })
}

#[tokio::test]
async fn the_certificate_is_checked_by_a_file_only() {
    let own = certificate("IP:127.0.0.1,DNS:web.internal", 2);
    let other = certificate("IP:127.0.0.1", 2);
    let server = Server::new(&own).await;
    let first = ask(server.at, tls(None, None)).await;
    if first == "no capability" {
        return;
    }
    assert_eq!(first, "ok");
    assert_eq!(ask(server.at, tls(None, Some("web.internal"))).await, "ok", "it is asked by that name");
    assert_eq!(ask(server.at, tls(Some(&own), None)).await, "ok", "the file may hold the worker's own");
    assert_eq!(ask(server.at, tls(Some(&own), Some("web.internal"))).await, "ok");
    let strange = ask(server.at, tls(Some(&other), None)).await;
    assert!(strange.contains("(CA:TRUE), and is not in") && strange.contains("write it into that file"), "{strange}");
    let leaf = certificate_of("FALSE", "IP:127.0.0.1", 2);
    let signed = Server::new(&leaf).await;
    let strange = ask(signed.at, tls(Some(&other), None)).await;
    assert!(strange.contains("nor signed by one of it; write the file of the authority"), "{strange}");
    assert_eq!(ask(signed.at, tls(Some(&leaf), None)).await, "ok", "one that is none of an authority, in the file");
    let named = ask(server.at, tls(Some(&own), Some("api.internal"))).await;
    assert!(named.contains("not for api.internal; write a name that it has"), "{named}");
    drop(server.task);
}

#[tokio::test]
async fn wrong_certificates_are_told_apart() {
    for (names, days, expected) in [
        ("IP:127.0.0.1", -1, "its certificate has expired; renew it"),
        ("", 2, "its certificate names no host in its subjectAltName, and is not for 127.0.0.1"),
        ("DNS:web.internal", 2, "not for 127.0.0.1; write a name that it has"),
    ] {
        let own = certificate(names, days);
        let server = Server::new(&own).await;
        let why = ask(server.at, tls(Some(&own), None)).await;
        assert!(why.contains(expected) || why == "no capability", "{why}");
        let unchecked = ask(server.at, tls(None, None)).await;
        assert!(unchecked == "ok" || unchecked == "no capability", "{unchecked}");
    }
}

#[tokio::test]
async fn plain_http_and_tls_are_told_apart() {
    let own = certificate("IP:127.0.0.1", 2);
    let server = Server::new(&own).await;
    let why = ask(server.at, None).await;
    assert!(why.ends_with("the worker speaks TLS; write tls = true in its service") || why == "no capability", "{why}");
    let plain = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let at = plain.local_addr().unwrap();
    let mut task = JoinSet::new();
    task.spawn(async move {
        for answer in [&b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n"[..], b""] {
            let (mut peer, _) = plain.accept().await.unwrap();
            let _ = peer.read(&mut [0; 4096]).await;
            let _ = peer.write_all(answer).await;
        }
    });
    for _ in 0..2 {
        let why = ask(at, tls(None, None)).await;
        assert!(why.ends_with("if the worker speaks plain HTTP, leave `tls` out") || why == "no capability", "{why}");
    }
}

#[test]
fn a_file_without_certificates_is_no_file_of_authorities() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ca.pem");
    let why = || authorities(&file).unwrap_err();
    assert!(why().contains("cannot be read") && why().contains("see to `tls.ca`"), "{}", why());
    fs::write(&file, "nothing").unwrap();
    assert!(why().contains("holds no certificate"), "{}", why());
    fs::write(&file, "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n").unwrap();
    assert!(why().contains("is no file of certificates (PEM)"), "{}", why());
}
