//! Workers that speak TLS: `tls`.

use std::path::PathBuf;

use rustls::pki_types::ServerName;

use super::{
    paths,
    placeholders::filled,
    raw::{Value, quoted},
};

/// How requests of the daemon's own are sent to workers that speak TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// File of certificates (PEM) of which a worker's must be one, or be signed by one; `None`: it is not checked.
    pub ca: Option<PathBuf>,
    /// The name that is asked for (SNI) and that the certificate must have, with `{port}` and `{address}` in it; `None`:
    /// the worker's IP address, and no SNI.
    pub server_name: Option<String>,
}

/// `tls = true`, or `tls = { ca, server_name }`; `None` in it: workers speak plain HTTP.
pub(super) fn tls(value: &Value<'_>) -> Option<Option<Tls>> {
    if !value.is_table() {
        if value.is_text() || value.is_integer() || value.is_list() {
            return value
                .wrong_type("true, or a table, tls = { ca = \"/etc/ssl/web.pem\", server_name = \"web.internal\" }");
        }
        return value.boolean().map(|is_on| is_on.then_some(Tls { ca: None, server_name: None }));
    }
    let mut table = value.table()?;
    let ca = table.maybe("ca", paths::absolute);
    let server_name = table.maybe("server_name", server_name);
    table.done();
    Some(Some(Tls { ca: ca?, server_name: server_name? }))
}

fn server_name(value: &Value<'_>) -> Option<String> {
    let text = value.word()?;
    let example = filled(text, "web", ([127, 0, 0, 1], 8000).into());
    if ServerName::try_from(example).is_err() {
        return value.refuse(format!("{} is no host name and no IP address; write \"web.internal\"", quoted(text)));
    }
    Some(text.to_owned())
}
