/** Applies the schemas of queues: checks bodies that are published, and converts bodies that are delivered. */
import { OUTCOME, SluiceError } from '@sluice/protocol'
import { promiseOf, reasonOf, thenOf } from './endings.js'
import type { GroupHandler } from './groups.js'
import type { DeliveredMessage } from './message.js'
import type { PullSettings, Queue } from './options.js'
import type { Pullers } from './pull.js'
import type { SingleHandler } from './singles.js'
import type { MessageStream } from './stream.js'
import type { Session } from './session.js'

export type Schema = NonNullable<Queue['schema']>

/** @throws SluiceError INVALID_BODY naming the first issues that the schema reports */
export async function checkBody(schema: Schema, body: unknown, what: string): Promise<void> {
  await readBody(schema, body, what)
}

/** The output of the schema. @throws SluiceError INVALID_BODY naming the first issues that the schema reports */
export async function readBody(schema: Schema, body: unknown, what: string): Promise<unknown> {
  const result = await schema['~standard'].validate(body)
  if (result.issues === undefined) return result.value
  throw new SluiceError(
    'INVALID_BODY',
    `The ${what} does not match the schema of its queue: ${issuesText(result.issues)}.`,
  )
}

/** @throws SluiceError INVALID_BODY naming the first message that does not match */
export async function checkBodies(
  schema: Schema,
  records: readonly { readonly body: unknown }[],
): Promise<void> {
  let index = 0
  for (const { body } of records) await checkBody(schema, body, `body of message ${index++}`)
}

type Result = Awaited<ReturnType<Schema['~standard']['validate']>>

/**
 * Applies a schema to delivered messages before the consumer gets them. If a body does not match or cannot be decoded, no
 * further attempt can succeed, so its message becomes a dead letter.
 */
export class Reader {
  readonly #schema: Schema
  readonly #session: Session

  constructor(schema: Schema, session: Session) {
    this.#schema = schema
    this.#session = session
  }

  /**
   * Returns whether the consumer gets the message. If so, its body is the output of the schema; if not, the message is
   * settled.
   */
  admits(message: DeliveredMessage): boolean | Promise<boolean> {
    let body: unknown
    try {
      ;({ body } = message)
    } catch (error) {
      return this.#refuse(message, error)
    }
    try {
      const result = this.#schema['~standard'].validate(body)
      const then = thenOf(result)
      if (then === undefined) return this.#judge(message, result as Result)
      return promiseOf(result, then)
        .then((result) => this.#judge(message, result as Result))
        .catch((error: unknown) => this.#failed(message, error))
    } catch (error) {
      return this.#failed(message, error)
    }
  }

  #judge(message: DeliveredMessage, result: Result): boolean {
    if (result.issues !== undefined)
      return this.#refuse(
        message,
        `The body does not match the schema of its queue: ${issuesText(result.issues)}.`,
      )
    message.read(result.value)
    return true
  }

  #refuse(message: DeliveredMessage, reason: unknown): false {
    message.finish(OUTCOME.deadLetter, undefined, reasonOf(reason), 'invalid')
    return false
  }

  // A schema that throws says nothing about the body. The message is delivered again, as if its handler had thrown.
  #failed(message: DeliveredMessage, error: unknown): false {
    message.finish(OUTCOME.retry, undefined, reasonOf(error))
    const { queue, offset, attempt } = message
    this.#session.handlerFailed({ queue, offset, attempt, messages: 1, error })
    return false
  }

  /** The messages that the consumer gets, in their order. */
  admitted(messages: DeliveredMessage[]): DeliveredMessage[] | Promise<DeliveredMessage[]> {
    const verdicts = messages.map((message) => this.admits(message))
    if (verdicts.every((verdict) => typeof verdict === 'boolean'))
      return messages.filter((_, index) => verdicts[index])
    const all = Promise.all(verdicts.map((verdict) => Promise.resolve(verdict)))
    return all.then((verdicts) => messages.filter((_, index) => verdicts[index]))
  }

  /** A handler that calls `handler` only for messages that match. */
  forSingles(handler: SingleHandler): SingleHandler {
    return (message, context) => {
      const admits = this.admits(message)
      if (typeof admits === 'boolean') return admits ? handler(message, context) : undefined
      return admits.then((admits) => (admits ? handler(message, context) : undefined))
    }
  }

  /** A handler that calls `handler` with the messages that match, if there are any. */
  forGroups(handler: GroupHandler): GroupHandler {
    return (messages, context) => {
      const call = (admitted: DeliveredMessage[]): unknown =>
        admitted.length === 0 ? undefined : handler(admitted, context)
      const admitted = this.admitted(messages)
      return Array.isArray(admitted) ? call(admitted) : admitted.then(call)
    }
  }
}

/** The messages of a stream that match the schema. */
export class ReadStream implements AsyncIterableIterator<DeliveredMessage, undefined>, AsyncDisposable {
  readonly #stream: MessageStream
  readonly #reader: Reader

  constructor(stream: MessageStream, reader: Reader) {
    this.#stream = stream
    this.#reader = reader
  }

  [Symbol.asyncIterator](): this {
    return this
  }

  async next(): Promise<IteratorResult<DeliveredMessage, undefined>> {
    for (;;) {
      const result = await this.#stream.next()
      if (result.done === true || (await this.#reader.admits(result.value))) return result
    }
  }

  return(): Promise<IteratorReturnResult<undefined>> {
    return this.#stream.return()
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.#stream[Symbol.asyncDispose]()
  }
}

/** Pulls until some messages match the schema, or `waitMs` has passed. */
export async function pullThrough(
  reader: Reader,
  pullers: Pullers,
  queue: string,
  settings: PullSettings,
): Promise<DeliveredMessage[]> {
  const untilMs = performance.now() + settings.waitMs
  for (;;) {
    const waitMs = Math.max(0, untilMs - performance.now())
    const pulled = await pullers.pull(queue, { ...settings, waitMs })
    const messages = await reader.admitted(pulled)
    if (messages.length > 0 || pulled.length === 0) return messages
  }
}

type Issues = NonNullable<Result['issues']>

const ISSUES_SHOWN = 3

function issuesText(issues: Issues): string {
  return issues
    .slice(0, ISSUES_SHOWN)
    .map(({ message, path }) => {
      const steps = (path ?? []).map((step) => String(typeof step === 'object' ? step.key : step))
      return steps.length === 0 ? message : `${steps.join('.')}: ${message}`
    })
    .join('; ')
}
