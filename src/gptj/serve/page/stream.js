/** Talking to the server: JSON, and completions as they come. */

/** What the server, or the way to it, said no with. */
export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** Addresses are relative, so that the page also works below a path of a proxy. */
async function request(path, { key, body, signal } = {}) {
  const headers = {};
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method: body ? "POST" : "GET",
      headers,
      body: body && JSON.stringify(body),
      signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached.", 0);
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  let said = "";
  try {
    said = sentence((await response.json()).error.message);
  } catch {
    // A proxy's page, say; the status is what there is to tell.
  }
  const { status } = response;
  const wait = Number(response.headers.get("Retry-After"));
  if (status === 429 || status === 503) {
    const when = wait > 0 ? `in ${wait} s` : "in a moment";
    const again = /try again/.test(said) ? "" : ` Try again ${when}.`;
    return new ApiError((said || "The server is busy.") + again, status);
  }
  return new ApiError(said || `The server answered ${status}.`, status);
}

/** The server's messages are parts of sentences. */
function sentence(message) {
  const text = message[0].toUpperCase() + message.slice(1);
  return /[.!?]$/.test(text) ? text : `${text}.`;
}

export async function models(key) {
  const response = await request("v1/models", { key });
  return (await response.json()).data.map((model) => model.id);
}

/** {count, max_model_len}: of how many tokens `prompt` is, and the context has room for. */
export async function countTokens(prompt, key, signal) {
  return (await request("tokenize", { key, signal, body: { prompt } })).json();
}

/** Yields {index, text, tokens, finish} for every piece of every choice. */
export async function* complete(body, key, signal) {
  const response = await request("v1/completions", {
    key,
    signal,
    body: { ...body, stream: true, stream_options: { include_usage: true } },
  });
  for await (const data of serverSentEvents(response.body)) {
    if (data === "[DONE]") return;
    const event = JSON.parse(data);
    if (event.error) throw new ApiError(sentence(event.error.message), 500);
    for (const choice of event.choices ?? []) {
      const { index, text, finish_reason: finish } = choice;
      yield { index, text, tokens: drawn(choice), finish };
    }
  }
  throw new ApiError("The connection was lost before the end.", 0);
}

/** The `data:` of each event. An event ends with an empty line; other fields do not concern us. */
async function* serverSentEvents(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data:")) yield line.slice(5).trim();
    }
  }
}

function drawn({ text, logprobs }) {
  if (!logprobs) return text ? [{ piece: text, logprob: null, top: [] }] : [];
  return logprobs.tokens.map((piece, i) => ({
    piece,
    logprob: logprobs.token_logprobs[i],
    top: Object.entries(logprobs.top_logprobs?.[i] ?? {}).sort((a, b) => b[1] - a[1]),
  }));
}
