/** A message that a reader got. It has no lease, so it has no methods; its fields are decoded when they are first read. */
import {
  readRecordOptions,
  recordFlags,
  recordSize,
  RECORD_FLAG,
  scatteredOffset,
  scatteredPublishedAtMs,
  type RecordOptions,
} from '@sluice/protocol'
import { INSPECT, NO_HEADERS, recordBody } from './records.js'
import type { RunOf } from './run.js'

/** A message of a stream. */
export interface StreamMessage<Body = unknown> {
  /**
   * The body, decoded when it is first read. Reading it throws SluiceError INVALID_BODY if it cannot be decoded. A
   * `Uint8Array` may share its `buffer` with other bodies, like Node's Buffers; its bytes begin at `byteOffset`.
   */
  readonly body: Body
  readonly id: string | undefined
  readonly key: string | undefined
  /** Position of the message in the stream, from 0. */
  readonly offset: number
  readonly publishedAt: Date
  readonly headers: Readonly<Record<string, string>>
  /** Name of the stream. */
  readonly stream: string
}

/** The reader that got a message. */
interface Source {
  readonly stream: string
}

export type ReadRun = RunOf<Source>

const UNREAD = Symbol('unread')

export class ReadMessage implements StreamMessage {
  readonly #run: ReadRun
  readonly #index: number
  readonly #at: number
  #body: unknown = UNREAD
  #options: RecordOptions | undefined

  constructor(run: ReadRun, index: number, at: number) {
    this.#run = run
    this.#index = index
    this.#at = at
  }

  get body(): unknown {
    if (this.#body === UNREAD) this.#body = recordBody(this.#run.records, this.#at)
    return this.#body
  }

  get id(): string | undefined {
    return this.#flags & RECORD_FLAG.id ? this.#record.id : undefined
  }

  get key(): string | undefined {
    return this.#flags & RECORD_FLAG.key ? this.#record.key : undefined
  }

  get offset(): number {
    const { gap, records, firstOffset } = this.#run
    return gap === 0 ? firstOffset + this.#index : scatteredOffset(records, this.#at - gap)
  }

  get publishedAt(): Date {
    const { gap, records, publishedAtMs } = this.#run
    return new Date(gap === 0 ? publishedAtMs : scatteredPublishedAtMs(records, this.#at - gap))
  }

  get headers(): Readonly<Record<string, string>> {
    return this.#flags & RECORD_FLAG.headers ? this.#record.headers! : NO_HEADERS
  }

  get stream(): string {
    return this.#run.keeper.stream
  }

  get #flags(): number {
    return recordFlags(this.#run.records, this.#at)
  }

  get #record(): RecordOptions {
    return (this.#options ??= readRecordOptions(this.#run.records, this.#at))
  }

  /** Size of the record in bytes. */
  get recordBytes(): number {
    return recordSize(this.#run.records, this.#at)
  }

  /** Returns the fields that a log should show. */
  toJSON(): object {
    const { stream, offset, id, key, publishedAt, headers, body } = this
    return { stream, offset, id, key, publishedAt, headers, body }
  }

  [INSPECT](): object {
    return this.toJSON()
  }

  /** Replaces the body with the output of the schema of the stream. */
  read(body: unknown): void {
    this.#body = body
  }
}
