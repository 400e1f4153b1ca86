//! TLS to workers, for the daemon's own requests: a worker is a process of this host, so that its certificate is checked
//! only where the configuration names what it is to be checked by.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::ring,
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
    server::ParsedCertificate,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{http, stream::Stream};
use crate::config::{Tls, filled};

/// How long a worker is given to show that it speaks TLS, after plain HTTP has failed.
const SHOWS: Duration = Duration::from_millis(500);
/// The protocol that is asked for (ALPN); h2 is not spoken.
const ALPN: &[u8] = b"http/1.1";

/// A connection to a worker under TLS. A worker that closes without saying so under TLS (`close_notify`) has closed.
pub(super) struct Secured(TlsStream<Stream>);

/// Speaks TLS on a connection.
///
/// # Errors
/// Why there is no TLS on it, and what to do, in words.
pub(super) async fn handshake(stream: Stream, worker: SocketAddr, tls: &Tls) -> Result<Secured, String> {
    let path = tls.ca.clone();
    let verifier = crate::service::blocking(move || Ok(verifier(path))).await.map_err(|error| error.to_string())??;
    let (name, shown) = name(worker, tls)?;
    let connector = TlsConnector::from(Arc::new(client(verifier)?));
    connector.connect(name, stream).await.map(Secured).map_err(|error| why(&error, tls, &shown))
}

/// Whether a worker that has not answered plain HTTP speaks TLS.
pub(super) async fn is_spoken(worker: SocketAddr) -> bool {
    let look = async {
        let stream = http::connect(worker, SHOWS).await.ok()?;
        handshake(stream, worker, &Tls { ca: None, server_name: None }).await.ok()
    };
    timeout(SHOWS, look).await.ok().flatten().is_some()
}

/// The host that a request under TLS is for, where its headers name none.
pub(super) fn host(worker: SocketAddr, tls: &Tls) -> String {
    tls.server_name.as_ref().map_or_else(|| worker.to_string(), |name| filled(name, "", worker))
}

/// The certificates in a file.
///
/// # Errors
/// Why there are none, in words.
pub(crate) fn authorities(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let shown = path.display();
    let text = std::fs::read(path).map_err(|error| format!("{shown} cannot be read: {error}; see to `tls.ca`"))?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let all = all.map_err(|error| format!("{shown} is no file of certificates (PEM): {error}; see to `tls.ca`"))?;
    if all.is_empty() {
        return Err(format!("{shown} holds no certificate; write a file of PEM, with -----BEGIN CERTIFICATE-----"));
    }
    Ok(all)
}

fn client(verifier: Arc<Verifier>) -> Result<ClientConfig, String> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().map_err(|error| format!("TLS: {error}"))?;
    let mut config = builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

fn name(worker: SocketAddr, tls: &Tls) -> Result<(ServerName<'static>, String), String> {
    let Some(name) = &tls.server_name else {
        return Ok((ServerName::from(worker.ip()), worker.ip().to_string()));
    };
    let name = filled(name, "", worker);
    let parsed = ServerName::try_from(name.clone());
    parsed.map(|parsed| (parsed, name.clone())).map_err(|_| format!("{name} is no host name; see to `tls.server_name`"))
}

fn verifier(ca: Option<PathBuf>) -> Result<Arc<Verifier>, String> {
    let provider = Arc::new(ring::default_provider());
    let schemes = provider.signature_verification_algorithms.supported_schemes();
    let Some(path) = ca else { return Ok(Arc::new(Verifier { schemes, checks: None })) };
    let known = authorities(&path)?;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(known.iter().cloned());
    let signed = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
    let signed = signed.map_err(|error| format!("{} is of no use: {error}; see to `tls.ca`", path.display()))?;
    Ok(Arc::new(Verifier { schemes, checks: Some(Checks { known, signed }) }))
}

/// Takes every certificate, or checks it.
#[derive(Debug)]
struct Verifier {
    schemes: Vec<SignatureScheme>,
    checks: Option<Checks>,
}

/// Takes certificates that one of the file has signed, and those of the file themselves: a worker's own, which
/// `openssl req -x509` makes as that of an authority, is none that an authority has signed.
#[derive(Debug)]
struct Checks {
    known: Vec<CertificateDer<'static>>,
    signed: Arc<WebPkiServerVerifier>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        own: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(Checks { known, signed }) = &self.checks else { return Ok(ServerCertVerified::assertion()) };
        let error = match signed.verify_server_cert(own, between, name, ocsp, now) {
            Err(error) if !is_of_time(&error) && known.iter().any(|known| known.as_ref() == own.as_ref()) => error,
            result => return result,
        };
        // Its times are looked at before anything else (rustls-webpki, check_issuer_independent_properties).
        verify_server_name(&ParsedCertificate::try_from(own).map_err(|_| error)?, name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        own: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let verify = |checks: &Checks| checks.signed.verify_tls12_signature(message, own, signature);
        self.checks.as_ref().map_or_else(|| Ok(HandshakeSignatureValid::assertion()), verify)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        own: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let verify = |checks: &Checks| checks.signed.verify_tls13_signature(message, own, signature);
        self.checks.as_ref().map_or_else(|| Ok(HandshakeSignatureValid::assertion()), verify)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes.clone()
    }
}

fn is_of_time(error: &Error) -> bool {
    use CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};
    matches!(
        error,
        Error::InvalidCertificate(Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. })
    )
}

/// Why a handshake has failed, and what to do.
fn why(error: &io::Error, tls: &Tls, name: &str) -> String {
    let plain = "if the worker speaks plain HTTP, leave `tls` out";
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(Error::InvalidCertificate(error)) => format!("its certificate {}", of_certificate(error, tls, name)),
        Some(Error::InvalidMessage(_)) => format!("it does not speak TLS: its answer is none of TLS; {plain}"),
        Some(Error::AlertReceived(AlertDescription::UnrecognisedName)) => {
            format!("it has no certificate for {name}; write a name that it has, tls.server_name = \"web.internal\"")
        }
        Some(Error::AlertReceived(AlertDescription::ProtocolVersion)) => {
            "it speaks none of TLS 1.2 and 1.3; have it speak one of them".to_owned()
        }
        Some(Error::AlertReceived(AlertDescription::NoApplicationProtocol) | Error::NoApplicationProtocol) => {
            "it does not speak HTTP/1.1 under TLS (ALPN http/1.1); have it offer that beside h2".to_owned()
        }
        Some(Error::AlertReceived(alert)) => format!("it has refused the TLS handshake: {alert:?}"),
        Some(error) => format!("the TLS handshake failed: {error}"),
        None if error.kind() == io::ErrorKind::UnexpectedEof || error.kind() == io::ErrorKind::ConnectionReset => {
            format!("it closed the connection in the TLS handshake; {plain}")
        }
        None => format!("the TLS handshake failed: {error}"),
    }
}

/// What is wrong with a certificate.
fn of_certificate(error: &CertificateError, tls: &Tls, name: &str) -> String {
    let ca = tls.ca.as_deref().unwrap_or(Path::new("")).display();
    match error {
        // A bad signature: one of the file has the name of its issuer, and another key.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => format!(
            "is not of {ca}, nor signed by one of it; write the file of the authority that has signed it, tls.ca"
        ),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "has expired; renew it".to_owned(),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "is not valid yet; compare its dates with this host's clock".to_owned()
        }
        CertificateError::NotValidForName => {
            format!("is not for {name}; write a name that it has, tls.server_name = \"web.internal\"")
        }
        CertificateError::NotValidForNameContext { presented, .. } if presented.is_empty() => format!(
            "names no host in its subjectAltName, and is not for {name}; make it anew with one: openssl req -x509 -addext \
             subjectAltName=DNS:web.internal"
        ),
        CertificateError::NotValidForNameContext { presented, .. } => format!(
            "is for {}, not for {name}; write a name that it has, tls.server_name = \"web.internal\"",
            presented.join(", ")
        ),
        // What rustls has no name for; webpki's type is not to be had.
        CertificateError::Other(error) if format!("{error:?}").contains("CaUsedAsEndEntity") => format!(
            "is that of an authority itself (CA:TRUE), and is not in {ca}; write it into that file, or have one made that \
             an authority of it has signed"
        ),
        error => format!("is not accepted: {error}"),
    }
}

impl AsyncRead for Secured {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match ready!(Pin::new(&mut self.0).poll_read(cx, into)) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Poll::Ready(Ok(())),
            result => Poll::Ready(result),
        }
    }
}

impl AsyncWrite for Secured {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
