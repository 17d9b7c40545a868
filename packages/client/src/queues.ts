/** Queues at the broker: ensure, get, list, delete, purge. */
import {
  LIMITS,
  OP,
  QUEUE_OPTIONS_RESERVED,
  SluiceError,
  type QueueInfo as WireQueueInfo,
} from '@sluice/protocol'
import { parseDuration, type Duration } from './duration.js'
import { onlyKnown, queueOf, type CallOptions, type QueueRef } from './options.js'

/** Options of a queue. What is not named keeps its value, or gets its default when the queue is made. */
export interface QueueOptions {
  /** Tries after which a message is dead, 1 to 255. Default 10. */
  readonly maxDeliveries?: number
  /** Wait before the second try, doubled with each further one up to `max`. Default 1 s, at most 5 min. */
  readonly retry?: { readonly initial?: Duration; readonly max?: Duration }
}

/** Options of `queues.ensure`. */
export interface EnsureOptions extends QueueOptions {
  /** Changes a queue that exists with other options, instead of refusing. Default false. */
  readonly update?: boolean
}

/** What a queue holds at one moment. Counts are messages unless named otherwise. */
export interface QueueInfo extends Omit<WireQueueInfo, 'options'> {
  readonly options: {
    readonly maxDeliveries: number
    /** In milliseconds. */
    readonly retry: { readonly initial: number; readonly max: number }
  }
}

type Body = { readonly [name: string]: unknown }

/** Sends a control frame and waits for its RESULT. `repeatable`: sent again when the connection was lost meanwhile. */
export type ControlRequest = (
  opcode: number,
  body: Body,
  repeatable: boolean,
  options: CallOptions | undefined,
) => Promise<Body>

const CALL_OPTIONS = ['timeout', 'signal'] as const

/** `sluice.queues`. Every call rejects with a SluiceError: INVALID_NAME, TIMEOUT, ABORTED, CLOSED and those named. */
export class Queues {
  readonly #request: ControlRequest

  /** @internal */
  constructor(request: ControlRequest) {
    this.#request = request
  }

  /**
   * Makes the queue unless it exists. Compares only the options that are named.
   *
   * @throws SluiceError QUEUE_CONFLICT when it exists with other options and `update` is not true;
   * INVALID_ARGUMENT, NOT_SUPPORTED naming the option; TOO_MANY_QUEUES
   * @example
   * await sluice.queues.ensure('orders', { maxDeliveries: 5, retry: { initial: '1s', max: '1m' } })
   */
  async ensure(
    queue: QueueRef,
    options: EnsureOptions = {},
    call?: CallOptions,
  ): Promise<{ readonly created: boolean; readonly queue: QueueInfo }> {
    const { name } = queueOf(queue)
    const { update, ...named } = options
    const body = { name, options: wireOptions(named), ...(update === undefined ? {} : { update }) }
    const result = await this.#call(OP.ENSURE, body, true, call)
    if (typeof result['created'] !== 'boolean') throw malformed('ENSURE')
    return { created: result['created'], queue: queueInfo('ENSURE', result['queue']) }
  }

  /** @throws SluiceError QUEUE_NOT_FOUND */
  async get(queue: QueueRef, call?: CallOptions): Promise<QueueInfo> {
    const result = await this.#call(OP.GET, { name: queueOf(queue).name }, true, call)
    return queueInfo('GET', result['queue'])
  }

  /** All queues, by name. The deadline is that of each page of them. */
  async list(call?: CallOptions): Promise<QueueInfo[]> {
    const all: QueueInfo[] = []
    let body: Body = {}
    for (;;) {
      const { queues, more } = await this.#call(OP.LIST, body, true, call)
      if (!Array.isArray(queues)) throw malformed('LIST')
      for (const queue of queues) all.push(queueInfo('LIST', queue))
      if (more !== true) return all
      const after = all.at(-1)?.name
      // A page that brings nothing new would be asked for again for ever.
      if (queues.length === 0 || after === undefined || after === body['after']) throw malformed('LIST')
      body = { after }
    }
  }

  /**
   * Deletes the queue and all its messages, the dead ones too; says how many there were.
   * @throws SluiceError QUEUE_NOT_FOUND; CONNECTION_LOST with `outcome: 'unknown'`
   */
  delete(queue: QueueRef, call?: CallOptions): Promise<{ readonly messages: number }> {
    return this.#removal('DELETE', queue, call)
  }

  /**
   * Removes all messages that are scheduled, ready or leased now, not the dead ones; says how many there were.
   * @throws SluiceError QUEUE_NOT_FOUND; CONNECTION_LOST with `outcome: 'unknown'`
   */
  purge(queue: QueueRef, call?: CallOptions): Promise<{ readonly messages: number }> {
    return this.#removal('PURGE', queue, call)
  }

  async #removal(
    frame: 'DELETE' | 'PURGE',
    queue: QueueRef,
    call: CallOptions | undefined,
  ): Promise<{ readonly messages: number }> {
    // Not repeated after a lost connection: a second one could take what came since.
    const { messages } = await this.#call(OP[frame], { name: queueOf(queue).name }, false, call)
    if (typeof messages !== 'number') throw malformed(frame)
    return { messages }
  }

  #call(opcode: number, body: Body, repeatable: boolean, call: CallOptions | undefined): Promise<Body> {
    if (call !== undefined) onlyKnown('queues', call, CALL_OPTIONS)
    return this.#request(opcode, body, repeatable, call)
  }
}

/** Options that later versions give a meaning to. */
const QUEUE_OPTIONS_LATER = QUEUE_OPTIONS_RESERVED.map((name) => name.replace(/Ms$/, ''))

/** The broker's names for the options. */
function wireOptions(named: QueueOptions): Body {
  onlyKnown('queues.ensure', named, ['maxDeliveries', 'retry', 'update'], QUEUE_OPTIONS_LATER)
  const { retry, ...rest } = named
  const options: Record<string, unknown> = { ...rest }
  if (retry === undefined) return withoutUndefined(options)
  onlyKnown('queues.ensure', retry, ['initial', 'max'])
  if (retry.initial !== undefined) options['retryInitialMs'] = parseDuration(retry.initial, 'retry.initial')
  if (retry.max !== undefined) options['retryMaxMs'] = parseDuration(retry.max, 'retry.max')
  return withoutUndefined(options)
}

function withoutUndefined(options: Record<string, unknown>): Body {
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined))
}

function queueInfo(frame: string, value: unknown): QueueInfo {
  if (typeof value !== 'object' || value === null) throw malformed(frame)
  const { options, ...rest } = value as WireQueueInfo
  if (typeof rest.name !== 'string' || rest.name.length > LIMITS.queueNameBytesMax) throw malformed(frame)
  if (typeof options !== 'object' || options === null) throw malformed(frame)
  const { retryInitialMs, retryMaxMs, ...others } = options
  return { ...rest, options: { ...others, retry: { initial: retryInitialMs, max: retryMaxMs } } }
}

function malformed(frame: string): SluiceError {
  return new SluiceError('MALFORMED_FRAME', `The broker's answer to ${frame} is not of the expected form.`)
}
