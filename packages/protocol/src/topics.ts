/**
 * Topics: names that messages are published to, and the patterns of the bindings that route them to queues.
 *
 * A name has levels, separated by dots. A pattern is a name in which a level can be `*`, for one level, or `#`, for any
 * number of levels. PUBLISH to the address `#name` is refused if nothing matches; to `#?name` it is accepted.
 *
 * BIND { pattern, target, headers? } → { changed, id }. UNBIND { pattern, target, headers? } → { changed }.
 * BINDINGS { pattern?, target?, after? } → { bindings, more }. ROUTES { topic, headers?, after? } → { bindings, more }.
 * `headers` of a binding is { all: headers } or { any: headers }. The next page sends the last id as `after`.
 */
import { textBytes } from './bytes.js'
import { SluiceError, shown, type ErrorCode } from './errors.js'
import { LIMITS } from './limits.js'
import { headersOf } from './managing.js'
import { TOPIC_MARK, queueName, type QueueName } from './names.js'
import { onlyFields, whole, type Body } from './queues.js'

/** The second character of an address that accepts messages which match no binding. No level has it. */
const DROP_MARK = '?'

/** A topic's name that has passed `topicName`. */
export type TopicName = string & { readonly __brand: 'TopicName' }
/** A pattern that has passed `topicPattern`. */
export type TopicPattern = string & { readonly __brand: 'TopicPattern' }

const LEVEL = /^[A-Za-z0-9_:/-]+$/
const PATTERN_LEVEL = /^(?:[A-Za-z0-9_:/-]+|[*#])$/

/**
 * Checks the name of a topic: 1 to 253 bytes, 1 to 32 levels, each of ASCII letters, digits and `_ - : /`.
 * @throws SluiceError INVALID_TOPIC
 */
export function topicName(name: unknown): TopicName {
  checkLevels('topic', 'INVALID_TOPIC', name, LEVEL)
  return name as TopicName
}

/** Checks a pattern: like a name, but a level can be `*` or `#`. @throws SluiceError INVALID_PATTERN */
export function topicPattern(pattern: unknown): TopicPattern {
  checkLevels('pattern', 'INVALID_PATTERN', pattern, PATTERN_LEVEL)
  return pattern as TopicPattern
}

function checkLevels(what: string, code: ErrorCode, name: unknown, allowed: RegExp): void {
  if (typeof name !== 'string')
    throw new SluiceError(code, `The ${what} has the type ${typeof name}; it must be text.`)
  const bytes = textBytes(name)
  if (bytes === 0 || bytes > LIMITS.topicBytesMax) {
    throw new SluiceError(
      code,
      `The ${what} takes ${bytes} bytes; it must take 1 to ${LIMITS.topicBytesMax}.`,
    )
  }
  const levels = name.split('.')
  if (levels.length > LIMITS.topicLevelsMax) {
    throw new SluiceError(
      code,
      `The ${what} ${shown(name)} has ${levels.length} levels; at most ${LIMITS.topicLevelsMax} are allowed.`,
    )
  }
  for (const level of levels) {
    if (allowed.test(level)) continue
    const wildcards = allowed === PATTERN_LEVEL ? ', or * or # alone' : ''
    throw new SluiceError(
      code,
      level === ''
        ? `The ${what} ${shown(name)} has an empty level.`
        : `The ${what} ${shown(name)} has the level ${shown(level)}; a level has letters, digits and _ - : /${wildcards}.`,
    )
  }
}

/** A topic to publish to. */
export interface TopicAddress {
  /** Not checked yet. */
  readonly name: string
  /** Whether a message that matches no binding is dropped, and not refused. */
  readonly drops: boolean
}

export function topicAddress(name: TopicName, drops: boolean): string {
  return TOPIC_MARK + (drops ? DROP_MARK : '') + name
}

/** Splits an address for which `isTopicAddress` is true. */
export function readTopicAddress(address: string): TopicAddress {
  const drops = address[1] === DROP_MARK
  return { name: address.slice(drops ? 2 : 1), drops }
}

/** Headers that a message must have: all of them, or at least one. Values are compared exactly. */
export interface HeaderMatch {
  readonly kind: 'all' | 'any'
  readonly headers: Readonly<Record<string, string>>
}

/** How a binding names its headers on the wire and in the SDK. */
export type BindingHeaders =
  | { readonly all: Readonly<Record<string, string>>; readonly any?: never }
  | { readonly any: Readonly<Record<string, string>>; readonly all?: never }

/** The headers in the form of the wire. */
export function bindingHeaders(match: HeaderMatch): BindingHeaders {
  return match.kind === 'all' ? { all: match.headers } : { any: match.headers }
}

/** @throws SluiceError INVALID_ARGUMENT */
export function headerMatch(value: unknown): HeaderMatch | undefined {
  if (value === undefined) return undefined
  if (typeof value !== 'object' || value === null || Array.isArray(value) || ArrayBuffer.isView(value))
    throw new SluiceError('INVALID_ARGUMENT', '`headers` of a binding must be { all } or { any }.')
  const body = value as Body
  onlyFields('`headers` of a binding', body, ['all', 'any'])
  if ((body['all'] === undefined) === (body['any'] === undefined))
    throw new SluiceError('INVALID_ARGUMENT', '`headers` of a binding needs either `all` or `any`.')
  const kind = body['all'] === undefined ? 'any' : 'all'
  const headers = headersOf(body[kind])
  const bytes = Object.entries(headers).reduce(
    (sum, [name, value]) => sum + textBytes(name) + textBytes(value),
    0,
  )
  if (bytes === 0 || bytes > LIMITS.bindingHeadersBytesMax) {
    throw new SluiceError(
      'INVALID_ARGUMENT',
      `The headers of a binding take ${bytes} bytes; they must take 1 to ${LIMITS.bindingHeadersBytesMax}.`,
    )
  }
  return { kind, headers }
}

export interface BindingRequest {
  readonly pattern: TopicPattern
  readonly target: QueueName
  readonly match: HeaderMatch | undefined
}

/** The body of BIND and UNBIND. @throws SluiceError INVALID_ARGUMENT, INVALID_PATTERN, INVALID_NAME */
export function bindingRequest(frame: string, body: Body): BindingRequest {
  onlyFields(frame, body, ['pattern', 'target', 'headers'])
  return {
    pattern: topicPattern(body['pattern']),
    target: queueName(body['target']),
    match: headerMatch(body['headers']),
  }
}

export interface BindingsRequest {
  readonly pattern: TopicPattern | undefined
  readonly target: QueueName | undefined
  /** The last id of the previous page; 0 for the first page. */
  readonly after: number
}

/** @throws SluiceError INVALID_ARGUMENT, INVALID_PATTERN, INVALID_NAME */
export function bindingsRequest(body: Body): BindingsRequest {
  onlyFields('BINDINGS', body, ['pattern', 'target', 'after'])
  return {
    pattern: body['pattern'] === undefined ? undefined : topicPattern(body['pattern']),
    target: body['target'] === undefined ? undefined : queueName(body['target']),
    after: afterId(body),
  }
}

export interface RoutesRequest {
  readonly topic: TopicName
  /** Headers of the message; undefined if all bindings that match the name are wanted. */
  readonly headers: Readonly<Record<string, string>> | undefined
  readonly after: number
}

/** @throws SluiceError INVALID_ARGUMENT, INVALID_TOPIC */
export function routesRequest(body: Body): RoutesRequest {
  onlyFields('ROUTES', body, ['topic', 'headers', 'after'])
  return {
    topic: topicName(body['topic']),
    headers: body['headers'] === undefined ? undefined : headersOf(body['headers']),
    after: afterId(body),
  }
}

function afterId(body: Body): number {
  return body['after'] === undefined ? 0 : whole('after', body['after'], 2 ** 32)
}

/** A binding in the answers to BINDINGS and ROUTES. */
export interface BindingInfo {
  readonly id: number
  readonly pattern: string
  /** Name of the queue that gets the messages. */
  readonly target: string
  /** Headers that a message must have; undefined if the binding takes all messages. */
  readonly headers?: BindingHeaders | undefined
  readonly createdAtMs: number
}
