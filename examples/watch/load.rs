//! The clients: about fifty orders per second, and the requests to the faulty routes.

use std::net::SocketAddr;
use std::time::Duration;

use reqwest::Client;
use tokio_ctx::{BoxError, CancelScope, Context};

/// Whether the load includes requests to the faulty routes.
#[derive(Clone, Copy, PartialEq)]
pub enum Faults {
    Now,
    Later,
}

pub struct Load {
    client: Client,
    service: SocketAddr,
    until: CancelScope,
}

impl Load {
    /// Starts to send orders.
    pub fn start(service: SocketAddr, faults: Faults) -> Result<Load, BoxError> {
        // The service is on this machine, so no proxy is used.
        let client = Client::builder().no_proxy().build()?;
        let load = Load { client, service, until: Context::background().with_cancel().named("load") };
        load.every(20, "order", Duration::from_secs(1));
        if faults == Faults::Now {
            load.every(4_000, "report", Duration::from_millis(100));
            load.every(9_000, "thumbnail", Duration::from_millis(200));
            load.every(2_500, "subscribe", Duration::from_secs(1));
        }
        Ok(load)
    }

    /// Sends a request at each interval. The clients disconnect after `patience`.
    fn every(&self, millis: u64, path: &'static str, patience: Duration) {
        let (client, service) = (self.client.clone(), self.service);
        self.until.spawn_with(async move |ctx: Context| {
            for id in 0_u64.. {
                if ctx.sleep(Duration::from_millis(millis)).await.is_err() {
                    break;
                }
                let request = get(&client, service, &format!("{path}/{id}"), patience);
                ctx.spawn_bounded(request);
            }
        });
    }

    /// Sends one request. The client disconnects after `patience`.
    pub async fn ask(&self, path: &str, patience: Duration) {
        get(&self.client, self.service, path, patience).await;
    }

    /// Stops sending requests.
    pub fn stop(self) {
        self.until.cancel_with("no more load");
    }
}

fn get(
    client: &Client,
    service: SocketAddr,
    path: &str,
    patience: Duration,
) -> impl Future<Output = ()> + use<> {
    let request = client.get(format!("http://{service}/{path}")).timeout(patience);
    async move {
        // Errors are ignored.
        if let Ok(answer) = request.send().await {
            let _ = answer.bytes().await;
        }
    }
}
