//! Asks a worker which version it runs.

use std::{net::SocketAddr, time::Duration};

use serde_json::Value;
use tokio::time::timeout;

use super::{
    WarmError,
    http::{self, Answer, Body, ConnectError},
};
use crate::{
    config::{VersionPlace, VersionRequest},
    version::{Version, shown},
};

/// Largest body of an answer.
const BODY: usize = 64 << 10;

/// See [`super::version`].
pub(super) async fn ask(worker: SocketAddr, ask: &VersionRequest, within: Duration) -> Result<Version, WarmError> {
    let whole = async {
        let stream = http::connect(worker, within).await.map_err(ConnectError::words)?;
        let answer = http::exchange(stream, worker, &ask.request, Body { limit: BODY, keep: true }).await?;
        find(&answer, &ask.place)
    };
    let said = timeout(within, whole)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {} s", within.as_secs_f32())))
        .map_err(|why| WarmError::NoVersion { worker, request: http::label(&ask.request.to(worker)), why })?;
    Version::new(said.trim()).map_err(|_| WarmError::InvalidVersion { worker, shown: shown(said.trim()) })
}

fn find(answer: &Answer, place: &VersionPlace) -> Result<String, String> {
    match place {
        VersionPlace::Body => match std::str::from_utf8(&answer.body) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err("the body of the answer is not UTF-8".to_owned()),
        },
        VersionPlace::Header(name) => {
            let value = answer.headers.get(name).ok_or_else(|| format!("the answer has no header `{name}`"))?;
            value.to_str().map(str::to_owned).map_err(|_| format!("the header `{name}` is not plain text"))
        }
        VersionPlace::Json(path) => {
            let json = serde_json::from_slice(&answer.body)
                .map_err(|error| format!("the body of the answer is not JSON: {error}"))?;
            field(&json, path)
        }
    }
}

fn field(json: &Value, path: &str) -> Result<String, String> {
    let mut here = json;
    for key in path.split('.') {
        here = here.get(key).ok_or_else(|| format!("the JSON of the answer has no `{path}`: there is no `{key}`"))?;
    }
    match here {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        _ => Err(format!("`{path}` in the JSON of the answer is neither a string nor a number")),
    }
}
