/** Makes clients. `connect` waits for a connection; `createClient` does not. */
import { Sluice } from './client.js'
import { connectSettings, type ClientOptions, type ConnectOptions } from './options.js'
import { dialTcp, type Dial } from './transport.js'

/** Like `connect`, but with the transport as an argument. */
export async function connectThrough(
  dial: Dial,
  url: string | undefined,
  options: ConnectOptions,
): Promise<Sluice> {
  const sluice = new Sluice(connectSettings(url, options), dial)
  await sluice.open(options.signal)
  return sluice
}

/**
 * Connects to a broker.
 *
 * @param url `sluice://host:port`. Default: the environment variable SLUICE_URL, then sluice://localhost:7420.
 * @param options `name`, `maxInFlight`, `maxInFlightBytes`, `maxWaitingBytes`, `timeout`, `heartbeat`, `connectTimeout`,
 * `signal`.
 * @throws SluiceError UNREACHABLE when no broker answers within `connectTimeout`, 5 s by default; ABORTED; AUTH_FAILED,
 * PROTOCOL_VERSION, INVALID_URL, INVALID_ARGUMENT, NOT_SUPPORTED
 * @example
 * const sluice = await connect('sluice://localhost:7420', { name: 'checkout' })
 */
export function connect(url?: string, options?: ConnectOptions): Promise<Sluice>
export function connect(options: ConnectOptions): Promise<Sluice>
export function connect(first?: string | ConnectOptions, second?: ConnectOptions): Promise<Sluice> {
  return typeof first === 'object'
    ? connectThrough(dialTcp, undefined, first)
    : connectThrough(dialTcp, first, second ?? {})
}

/** Like `createClient`, but with the transport as an argument. */
export function clientThrough(dial: Dial, url: string | undefined, options: ClientOptions): Sluice {
  const sluice = new Sluice(connectSettings(url, options, 'createClient'), dial)
  sluice.start()
  return sluice
}

/**
 * Makes a client without waiting for a connection. The client connects in the background and dials until it succeeds.
 * Calls wait for the connection until their deadlines, and consumers begin when it is open. `connect` does the same and
 * waits for the connection, for `connectTimeout` at most.
 *
 * If the broker refuses the client permanently (AUTH_FAILED, PROTOCOL_VERSION), the client is closed: `ready` and every
 * other call reject, and the client emits `error`.
 *
 * @param url Like the `url` of `connect`.
 * @param options `name`, `maxInFlight`, `maxInFlightBytes`, `maxWaitingBytes`, `timeout`, `heartbeat`.
 * @throws SluiceError INVALID_URL, INVALID_ARGUMENT, NOT_SUPPORTED
 * @example
 * export const sluice = createClient('sluice://localhost:7420', { name: 'checkout' })
 * sluice.on('connected', ({ address, again }) => console.log(address, again))
 * await sluice.ready()
 */
export function createClient(url?: string, options?: ClientOptions): Sluice
export function createClient(options: ClientOptions): Sluice
export function createClient(first?: string | ClientOptions, second?: ClientOptions): Sluice {
  return typeof first === 'object'
    ? clientThrough(dialTcp, undefined, first)
    : clientThrough(dialTcp, first, second ?? {})
}
