//! A product page that is assembled from three services concurrently: the product, which is required,
//! and reviews and recommendations, which are optional.
//!
//! All three run in one group, under one deadline. If the required part fails, the others are canceled.
//! An optional part that fails or is late is left out. The example requests four pages, and fails if one
//! of them is not as expected:
//!
//! ```text
//! cargo run --example fan_out
//! ```

use std::fmt;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

use tokio::time::Instant;
use tokio_ctx::{BoxError, Context, Error, Group};

/// The time limit of a page.
const BUDGET: Duration = Duration::from_millis(900);
/// The time limit of an optional part.
const OPTIONAL_BUDGET: Duration = Duration::from_millis(400);

/// The answer or the error of a service, and how long it takes.
#[derive(Clone, Copy)]
struct Service {
    name: &'static str,
    takes: Duration,
    answer: Result<&'static str, io::ErrorKind>,
}

const PRODUCT: Service = works("product", 60, "a teapot");
const REVIEWS: Service = works("reviews", 40, "4.5 stars");
const SIMILAR: Service = works("similar", 80, "cups");

#[tokio::main]
async fn main() -> ExitCode {
    match pages().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => {
            eprintln!("fan_out: {failed}");
            ExitCode::FAILURE
        }
    }
}

/// The four pages, and the expected result of each.
async fn pages() -> Result<(), BoxError> {
    println!("all services are well");
    let (took, whole) = load_page(PRODUCT, REVIEWS, SIMILAR).await;
    expect(matches!(&whole, Ok(page) if page.to_string() == "a teapot, 4.5 stars, cups"), &whole)?;
    expect(took < OPTIONAL_BUDGET, &took)?;

    println!("reviews are down, recommendations are slow");
    let down = Service { answer: Err(io::ErrorKind::ConnectionRefused), ..REVIEWS };
    let (took, reduced) = load_page(PRODUCT, down, Service { takes: BUDGET * 10, ..SIMILAR }).await;
    expect(matches!(&reduced, Ok(page) if page.to_string() == "a teapot"), &reduced)?;
    expect(took >= OPTIONAL_BUDGET && took < BUDGET, &took)?;

    println!("there is no such product");
    let unknown = Service { answer: Err(io::ErrorKind::NotFound), ..PRODUCT };
    let (took, none) = load_page(unknown, REVIEWS, Service { takes: BUDGET * 10, ..SIMILAR }).await;
    let why = none.as_ref().err().map(Unavailable::kind);
    expect(why == Some(io::ErrorKind::NotFound), &none)?;
    // The failure canceled the recommendations.
    expect(took < OPTIONAL_BUDGET, &took)?;

    println!("the product is slow");
    let (took, late) = load_page(Service { takes: BUDGET * 10, ..PRODUCT }, REVIEWS, SIMILAR).await;
    let why = late.as_ref().err().map(Unavailable::kind);
    expect(why == Some(io::ErrorKind::TimedOut), &late)?;
    expect(took >= BUDGET && took < BUDGET * 2, &took)
}

/// Assembles a page, and prints the result and how long it took.
async fn load_page(
    product: Service,
    reviews: Service,
    similar: Service,
) -> (Duration, Result<Page, Unavailable>) {
    let start = Instant::now();
    let page = fan_out(&Context::background().with_timeout(BUDGET), product, reviews, similar).await;
    let took = start.elapsed();
    match &page {
        Ok(page) => println!("  after {} ms: {page}", took.as_millis()),
        Err(failed) => println!("  after {} ms: {failed}", took.as_millis()),
    }
    (took, page)
}

/// Assembles a page from one required and two optional parts. A task that fails makes the page fail, so
/// the tasks of optional parts always succeed.
async fn fan_out(
    request: &Context,
    product: Service,
    reviews: Service,
    similar: Service,
) -> Result<Page, Unavailable> {
    let (mut group, _ctx) = Group::new(request);
    group.spawn(async move { call(product).await.map(Some) });
    for service in [reviews, similar] {
        group.spawn(async move { Ok(optional(service).await) });
    }
    // When this returns, all tasks have ended, even if it returns an error.
    let parts = group.join().await?;
    Ok(Page { parts: parts.into_iter().flatten().collect() })
}

/// Loads a part with a time limit of its own, and leaves it out if it fails or is late.
async fn optional(service: Service) -> Option<&'static str> {
    let ctx = Context::current();
    match ctx.try_within(OPTIONAL_BUDGET, async |_| call(service).await).await {
        Ok(part) => Some(part),
        Err(left_out) => {
            println!("  without {}: {left_out}", service.name);
            None
        }
    }
}

/// Stands for a request over the network. It does not know the deadline; its context does.
async fn call(service: Service) -> Result<&'static str, Unavailable> {
    let unavailable = |why| Unavailable { service: service.name, why };
    let in_time = Context::current().sleep(service.takes).await;
    in_time.map_err(|ended| unavailable(ended.into()))?;
    service.answer.map_err(|kind| unavailable(kind.into()))
}

const fn works(name: &'static str, millis: u64, answer: &'static str) -> Service {
    Service { name, takes: Duration::from_millis(millis), answer: Ok(answer) }
}

#[derive(Debug)]
struct Page {
    parts: Vec<&'static str>,
}

impl fmt::Display for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.parts.join(", "))
    }
}

/// The error of a service that did not answer, or not in time.
#[derive(Debug)]
struct Unavailable {
    service: &'static str,
    why: io::Error,
}

impl Unavailable {
    fn kind(&self) -> io::ErrorKind {
        self.why.kind()
    }
}

/// The context of the page has ended before a service failed.
impl From<Error> for Unavailable {
    fn from(ended: Error) -> Unavailable {
        Unavailable { service: "page", why: ended.into() }
    }
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.service, self.why)
    }
}

impl std::error::Error for Unavailable {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.why)
    }
}

fn expect(holds: bool, instead: &dyn fmt::Debug) -> Result<(), BoxError> {
    if holds { Ok(()) } else { Err(format!("that should not be: {instead:?}").into()) }
}
