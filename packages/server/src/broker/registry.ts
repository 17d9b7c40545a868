/**
 * The registry of bindings and schedules: adds, changes and removes definitions, and checks their limits. It writes each
 * change to the log and applies it to the state, in this order.
 *
 * Invariant: a definition that breaks a limit is refused before anything changes.
 */
import { BATCH_HEADER_BYTES, SluiceError, textBytes } from '@sluice/protocol'
import { FactBuffer } from '../queue/index.js'
import { DEFINITION_IDS, type Defined, type Definition, type Definitions } from '../state/definitions.js'
import { PAGES_MAX } from '../state/directory.js'
import type { State } from '../state/state.js'
import { NO_QUEUE, type Writer } from './writer.js'

/** Maximum number of definitions of all kinds. */
export const DEFINITIONS_MAX = 100_000
/** Maximum size of the texts of all definitions, in bytes. */
export const DEFINITIONS_BYTES_MAX = 64 << 20

/** Size of a `fired` fact in the log, with the header of its batch. */
const FIRED_BYTES = BATCH_HEADER_BYTES + 24

export interface RegistryOptions {
  readonly pagesMax?: number
  readonly definitionsMax?: number
}

export class Registry {
  readonly #state: State
  readonly #definitions: Definitions
  readonly #writer: Writer
  readonly #pagesMax: number
  readonly #definitionsMax: number
  readonly #facts = new FactBuffer()

  constructor(
    state: State,
    writer: Writer,
    { pagesMax = PAGES_MAX, definitionsMax = DEFINITIONS_MAX }: RegistryOptions,
  ) {
    this.#state = state
    this.#definitions = state.definitions
    this.#writer = writer
    this.#pagesMax = pagesMax
    this.#definitionsMax = definitionsMax
  }

  [Symbol.iterator](): Iterator<Definition> {
    return this.#definitions[Symbol.iterator]()
  }

  /** @throws SluiceError TOO_MANY_DEFINITIONS, DEFINITION_TOO_LARGE, MEMORY_FULL */
  define(defined: Defined): Definition {
    this.#writer.checkMemory()
    this.#checkText(defined.text, 0)
    const { size, nextId } = this.#definitions
    if (size >= this.#definitionsMax || nextId >= DEFINITION_IDS) {
      throw new SluiceError(
        'TOO_MANY_DEFINITIONS',
        `There are ${size} bindings and schedules; at most ${this.#definitionsMax} are allowed.`,
      )
    }
    const { pages } = this.#state
    if (pages >= this.#pagesMax) {
      throw new SluiceError(
        'TOO_MANY_DEFINITIONS',
        `The state of the broker takes ${pages} pages; at most ${this.#pagesMax} are allowed.`,
      )
    }
    return this.#apply(nextId, defined)
  }

  /** Changes the text and the number of the definition. @throws SluiceError DEFINITION_TOO_LARGE, TOO_MANY_DEFINITIONS */
  redefine({ id, kind, owner, text: before }: Definition, text: string, number: number): void {
    this.#checkText(text, textBytes(before))
    this.#apply(id, { kind, owner, text, number })
  }

  /**
   * Records that the schedule fired for the tick at `tickMs` and published nothing.
   * @throws SluiceError DISK_LOW
   */
  fired(definition: Definition, tickMs: number, count: number): void {
    this.#writer.checkRoom(FIRED_BYTES)
    this.#facts.fired(definition.id, tickMs, count)
    this.#writer.writeFacts(NO_QUEUE, this.#facts)
    this.#definitions.fired(definition, tickMs, count)
  }

  undefine(definition: Definition): void {
    this.#facts.undefine(definition.id)
    this.#writer.writeFacts(NO_QUEUE, this.#facts)
    this.#definitions.undefine(definition)
  }

  #apply(id: number, defined: Defined): Definition {
    const { kind, owner, number, text } = defined
    this.#facts.define(id, kind, owner, number, text)
    this.#writer.writeFacts(NO_QUEUE, this.#facts)
    return this.#definitions.define(id, defined)
  }

  #checkText(text: string, bytesBefore: number): void {
    const bytes = textBytes(text)
    const { definitionBytesMax } = this.#writer.limits
    if (bytes > definitionBytesMax) {
      throw new SluiceError(
        'DEFINITION_TOO_LARGE',
        `The binding or schedule takes ${bytes} bytes; at most ${definitionBytesMax} are allowed.`,
      )
    }
    const all = this.#definitions.textBytes - bytesBefore + bytes
    if (all > DEFINITIONS_BYTES_MAX) {
      throw new SluiceError(
        'TOO_MANY_DEFINITIONS',
        `All bindings and schedules would take ${all} bytes; at most ${DEFINITIONS_BYTES_MAX} are allowed.`,
      )
    }
  }
}
