/**
 * Topics in the client: declares them, publishes to them, and changes and lists the bindings that route their messages to
 * queues.
 */
import {
  OP,
  SluiceError,
  bindingHeaders,
  headerMatch,
  shown,
  topicAddress,
  topicName,
  topicPattern,
  type BindingHeaders,
  type BindingInfo,
  type RecordOptions,
} from '@sluice/protocol'
import type { StandardSchemaV1 } from '@standard-schema/spec'
import {
  MESSAGE_OPTIONS,
  SEND_OPTIONS,
  batchRecords,
  checkedSchema,
  onlyKnown,
  queueOf,
  recordOptions,
  type BatchMessage,
  type CallOptions,
  type PublishAllOptions,
  type PublishOptions,
  type QueueDeclaration,
  type QueueRef,
  type SendOptions,
} from './options.js'
import type { Producer } from './producer.js'
import { RESULT, type Body, type Requests } from './requests.js'
import { checkBodies, checkBody } from './schema.js'
import type { Dispatch } from './sending.js'
import { CALL_OPTIONS, malformed, withoutUndefined } from './selection.js'

/** A topic, and the type of its bodies. Made by `topic`. */
export interface Topic<Input = unknown, Output = Input> {
  readonly kind: 'topic'
  readonly name: string
  readonly schema?: StandardSchemaV1<Input, Output> | undefined
}

class TopicValue implements Topic {
  readonly kind = 'topic'
  readonly name: string
  readonly schema: StandardSchemaV1 | undefined

  constructor(name: string, schema: StandardSchemaV1 | undefined) {
    this.name = name
    this.schema = schema
  }
}

/**
 * Declares a topic as a plain value that modules share. Creates nothing at the broker. A message that is published to the
 * topic reaches every queue that is bound to a matching pattern; see `topics.bind`.
 *
 * @param name 1 to 32 levels, separated by dots, of letters, digits and `_ - : /`; 253 bytes at most.
 * @throws SluiceError INVALID_TOPIC, INVALID_ARGUMENT
 * @example
 * export const OrderCreated = topic<{ total: number }>('orders.eu.created')
 */
export function topic<Body = unknown>(name: string): Topic<Body>
export function topic<Schema extends StandardSchemaV1>(
  name: string,
  declaration: { readonly schema: Schema },
): Topic<StandardSchemaV1.InferInput<Schema>, StandardSchemaV1.InferOutput<Schema>>
export function topic<Body = unknown>(name: string, declaration?: QueueDeclaration): Topic<Body>
export function topic(name: string, declaration: QueueDeclaration = {}): Topic {
  const checked = topicName(name)
  onlyKnown('topic', declaration, ['schema'])
  return new TopicValue(checked, checkedSchema(declaration.schema))
}

/** Whether a value that names where to publish is a topic. */
export function isTopic(ref: unknown): ref is Topic {
  return typeof ref === 'object' && ref !== null && (ref as Partial<Topic>).kind === 'topic'
}

/** The result of a publish to a topic. */
export interface Routed {
  /** Number of queues that got the message or, in a batch, messages. */
  readonly targets: number
}

/** What happens to a message whose topic and headers match no binding. */
export interface RoutingOptions {
  /** `'refuse'`: the publish rejects with UNROUTABLE. `'drop'`: the message is dropped. Default `'refuse'`. */
  readonly unroutable?: 'refuse' | 'drop'
}

/** Options of `publish` to a topic. */
export interface TopicPublishOptions extends PublishOptions, RoutingOptions {}

/** Options of `publishAll` to a topic. */
export interface TopicPublishAllOptions extends PublishAllOptions, RoutingOptions {}

/** Options of `publishBatch` to a topic. */
export interface TopicBatchOptions extends SendOptions, RoutingOptions {}

const TOPIC_OPTIONS = [...MESSAGE_OPTIONS, ...SEND_OPTIONS, 'unroutable'] as const

/** @throws SluiceError INVALID_ARGUMENT */
function addressOf({ name }: Topic, { unroutable }: RoutingOptions): string {
  if (unroutable !== undefined && unroutable !== 'refuse' && unroutable !== 'drop') {
    throw new SluiceError(
      'INVALID_ARGUMENT',
      `\`unroutable\` is ${shown(unroutable)}; it must be "refuse" or "drop".`,
    )
  }
  return topicAddress(topicName(name), unroutable === 'drop')
}

/** Where messages go: the name of a queue or the address of a topic. */
interface Destination {
  readonly name: string
  readonly schema?: StandardSchemaV1 | undefined
}

/** `options` may have `unroutable` only for a topic. @throws SluiceError INVALID_NAME, INVALID_TOPIC, INVALID_ARGUMENT */
export function destinationOf(ref: QueueRef | Topic, options: RoutingOptions = {}): Destination {
  return isTopic(ref) ? { name: addressOf(ref, options), schema: ref.schema } : queueOf(ref)
}

/** Publishes one message. @throws SluiceError */
export async function publishToTopic(
  producer: Producer,
  to: Topic,
  body: unknown,
  options: TopicPublishOptions,
  dispatch: Dispatch,
): Promise<Routed> {
  const record = recordOptions(options, TOPIC_OPTIONS)
  const address = addressOf(to, options)
  if (to.schema !== undefined) await checkBody(to.schema, body, 'body')
  return sendToTopic(producer, address, body, record, dispatch)
}

/**
 * Publishes one message to the address of a topic. The broker answers a batch with one number of targets, so a message
 * with headers, which can have other targets than its neighbours, is a batch of its own. @throws SluiceError
 */
export async function sendToTopic(
  producer: Producer,
  address: string,
  body: unknown,
  record: RecordOptions | undefined,
  { timeoutMs, signal, failsOffline }: Dispatch,
): Promise<Routed> {
  if (record?.headers === undefined) {
    const { offset } = await producer.publish(address, body, record, timeoutMs, signal, failsOffline)
    return { targets: offset }
  }
  const batch = [{ body, options: record }]
  const [receipt] = await producer.publishBatch(address, batch, timeoutMs, signal, failsOffline)
  return { targets: receipt!.offset }
}

/** Publishes a batch: all of its messages reach their targets, or none does. @throws SluiceError */
export async function publishBatchToTopic(
  producer: Producer,
  to: Topic,
  messages: readonly BatchMessage[],
  options: TopicBatchOptions,
  { timeoutMs, signal, failsOffline }: Dispatch,
): Promise<Routed> {
  onlyKnown('publishBatch', options, [...SEND_OPTIONS, 'unroutable'])
  const address = addressOf(to, options)
  const records = batchRecords(messages)
  if (to.schema !== undefined) await checkBodies(to.schema, records)
  if (records.length === 0) return { targets: 0 }
  const [receipt] = await producer.publishBatch(address, records, timeoutMs, signal, failsOffline)
  return { targets: receipt!.offset }
}

/** Options of `topics.bind` and `topics.unbind`. */
export interface BindOptions {
  /** Headers that a message must have: `all` of them, or `any` of them, with exactly these values. */
  readonly headers?: BindingHeaders
}

/** Which bindings `topics.list` returns. */
export interface BindingSelection {
  /** Only the bindings with this pattern. */
  readonly pattern?: string
  /** Only the bindings of this queue. */
  readonly target?: QueueRef
}

/** A binding: the messages of all topics that match `pattern` go to the queue `target`. */
export interface Binding {
  readonly pattern: string
  readonly target: string
  readonly headers?: BindingHeaders
  readonly createdAt: Date
}

/** A queue that a message would reach. */
export interface Route {
  readonly target: string
  /** The bindings that match, oldest first. */
  readonly bindings: readonly Binding[]
}

/**
 * `sluice.topics`. Every call may reject with INVALID_PATTERN, INVALID_NAME, INVALID_ARGUMENT, TIMEOUT, ABORTED or CLOSED,
 * besides the errors that its own description names.
 */
export class Topics {
  readonly #requests: Requests

  /** @internal */
  constructor(requests: Requests) {
    this.#requests = requests
  }

  /**
   * Routes the messages of all topics that match the pattern to the queue. `changed` is false if the same binding exists.
   * The binding is removed when the queue is deleted.
   *
   * @param pattern A topic in which a level can be `*`, for one level, or `#`, for any number of levels, including none.
   * @throws SluiceError QUEUE_NOT_FOUND, TOO_MANY_BINDINGS, MEMORY_FULL
   * @example
   * await sluice.topics.bind('orders.*.created', 'invoices')
   * await sluice.topics.bind('orders.#', 'audit', { headers: { all: { vip: 'yes' } } })
   */
  bind(
    pattern: string | Topic,
    target: QueueRef,
    options: BindOptions = {},
    call?: CallOptions,
  ): Promise<{ readonly changed: boolean }> {
    return this.#change('BIND', pattern, target, options, call)
  }

  /**
   * Removes the binding with this pattern, queue and headers. `changed` is false if there is none.
   * @throws SluiceError QUEUE_NOT_FOUND
   */
  unbind(
    pattern: string | Topic,
    target: QueueRef,
    options: BindOptions = {},
    call?: CallOptions,
  ): Promise<{ readonly changed: boolean }> {
    return this.#change('UNBIND', pattern, target, options, call)
  }

  async #change(
    frame: 'BIND' | 'UNBIND',
    pattern: string | Topic,
    target: QueueRef,
    options: BindOptions,
    call: CallOptions | undefined,
  ): Promise<{ readonly changed: boolean }> {
    onlyKnown(frame === 'BIND' ? 'topics.bind' : 'topics.unbind', options, ['headers'])
    const body = withoutUndefined({
      pattern: patternOf(pattern),
      target: queueOf(target).name,
      headers: headersOf(options.headers),
    })
    const { changed } = await this.#call(OP[frame], body, call)
    if (typeof changed !== 'boolean') throw malformed(frame)
    return { changed }
  }

  /** Resolves with the bindings, oldest first. The deadline applies to each page. @throws SluiceError QUEUE_NOT_FOUND */
  async list(selection: BindingSelection = {}, call?: CallOptions): Promise<Binding[]> {
    onlyKnown('topics.list', selection, ['pattern', 'target'])
    const { pattern, target } = selection
    const body = withoutUndefined({
      pattern: pattern === undefined ? undefined : topicPattern(pattern),
      target: target === undefined ? undefined : queueOf(target).name,
    })
    return this.#pages('BINDINGS', body, call)
  }

  /**
   * Resolves with the queues that a message with this topic would reach, and the bindings by which it would. Publishes
   * nothing.
   *
   * @param headers The headers of the message. Without them, bindings that require headers match too.
   * @throws SluiceError INVALID_TOPIC
   */
  async test(
    name: string | Topic,
    headers?: Readonly<Record<string, string>>,
    call?: CallOptions,
  ): Promise<Route[]> {
    const checked = topicName(typeof name === 'string' ? name : name.name)
    const bindings = await this.#pages('ROUTES', withoutUndefined({ topic: checked, headers }), call)
    const routes = new Map<string, Binding[]>()
    for (const binding of bindings) {
      const found = routes.get(binding.target)
      if (found === undefined) routes.set(binding.target, [binding])
      else found.push(binding)
    }
    return [...routes].map(([target, bindings]) => ({ target, bindings }))
  }

  async #pages(frame: 'BINDINGS' | 'ROUTES', body: Body, call: CallOptions | undefined): Promise<Binding[]> {
    const all: Binding[] = []
    for (let after = 0; ;) {
      const page = await this.#call(OP[frame], after === 0 ? body : { ...body, after }, call)
      const { bindings, more } = page as { readonly bindings: readonly BindingInfo[]; readonly more: unknown }
      if (!Array.isArray(bindings)) throw malformed(frame)
      for (const binding of bindings) all.push(bindingOf(frame, binding as BindingInfo))
      if (more !== true) return all
      const last = (bindings.at(-1) as BindingInfo | undefined)?.id ?? 0
      // A page that makes no progress would make this loop endless.
      if (!Number.isSafeInteger(last) || last <= after) throw malformed(frame)
      after = last
    }
  }

  async #call(opcode: number, body: Body, call: CallOptions | undefined): Promise<Body> {
    if (call !== undefined) onlyKnown('topics', call, CALL_OPTIONS)
    return this.#requests.send(opcode, body, 'again', call, RESULT)
  }
}

/** @throws SluiceError INVALID_PATTERN */
export function patternOf(pattern: string | Topic): string {
  return topicPattern(isTopic(pattern) ? pattern.name : pattern)
}

function headersOf(headers: BindingHeaders | undefined): BindingHeaders | undefined {
  const match = headerMatch(headers)
  return match === undefined ? undefined : bindingHeaders(match)
}

function bindingOf(frame: string, value: BindingInfo): Binding {
  if (typeof value !== 'object' || value === null) throw malformed(frame)
  const { pattern, target, headers, createdAtMs } = value
  if (typeof pattern !== 'string' || typeof target !== 'string' || !Number.isSafeInteger(createdAtMs))
    throw malformed(frame)
  const required = headersOf(headers)
  return {
    pattern,
    target,
    ...(required === undefined ? {} : { headers: required }),
    createdAt: new Date(createdAtMs),
  }
}
