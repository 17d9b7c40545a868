/**
 * Definitions: small durable objects that are not queues, such as bindings and schedules. A definition has a text and
 * one number, which can change without the text. `Registry` changes definitions and writes the facts; recovery calls the
 * same methods. Each definition has a page of its own, which a checkpoint writes when the definition has changed.
 *
 * Invariant: an id is never used for a second definition. A definition with an owner is gone when that queue is gone, so
 * the fact that deletes a queue also removes the definitions of that queue.
 */
import { readText, readU32, readU64, textBytes, writeText, writeU32, writeU64 } from '@sluice/protocol'
import { NOT_WRITTEN, PAGE, type Pages } from '../queue/index.js'

/** Kinds of definitions. The numbers are stored. */
export const DEFINITION = { binding: 1, schedule: 2 } as const
export type DefinitionKind = (typeof DEFINITION)[keyof typeof DEFINITION]

/** Owner of a definition that belongs to no queue. */
export const NO_OWNER = 0
/** Ids are below this number, because the tree of pages has 32 bits for the id of a page. */
export const DEFINITION_IDS = 2 ** 32

/** Layout of a page: u8 kind · u8 0 · u16 0 · u32 owner · u64 number · u32 fired · u32 0 · text. */
const PAGE_HEAD_BYTES = 24

/** What a definition says; a change replaces all of it, except for the kind and the owner. */
export interface Defined {
  readonly kind: DefinitionKind
  /** Id of the queue that the definition belongs to, or `NO_OWNER`. */
  readonly owner: number
  readonly text: string
  /** A number with a meaning that depends on the kind: for example, the last tick of a schedule. */
  readonly number: number
}

export class Definition {
  readonly id: number
  readonly kind: DefinitionKind
  readonly owner: number
  text: string
  number: number
  /** For a schedule: the number of ticks that fired. */
  fired = 0
  /** Position of the newest page in the log, which may be older than the definition. */
  pagePosition = NOT_WRITTEN

  constructor(id: number, { kind, owner, text, number }: Defined) {
    this.id = id
    this.kind = kind
    this.owner = owner
    this.text = text
    this.number = number
  }

  encodePage(): Uint8Array {
    const bytes = new Uint8Array(PAGE_HEAD_BYTES + textBytes(this.text))
    bytes[0] = this.kind
    writeU32(bytes, 4, this.owner)
    writeU64(bytes, 8, this.number)
    writeU32(bytes, 16, this.fired)
    writeText(bytes, PAGE_HEAD_BYTES, this.text)
    return bytes
  }
}

export class Definitions {
  /** Id of the next definition. */
  nextId = 1
  /** Size of all texts. */
  textBytes = 0
  readonly #byId = new Map<number, Definition>()
  readonly #byOwner = new Map<number, Set<Definition>>()
  /** Definitions that differ from their page, or have none. */
  readonly #changed = new Set<Definition>()
  readonly #pages: Pages

  constructor(pages: Pages) {
    this.#pages = pages
  }

  get size(): number {
    return this.#byId.size
  }

  get(id: number): Definition | undefined {
    return this.#byId.get(id)
  }

  /** All definitions, in ascending order of id unless recovery has restored them in another order. */
  [Symbol.iterator](): IterableIterator<Definition> {
    return this.#byId.values()
  }

  /** Adds the definition, or changes the text and the number of the definition that has this id. */
  define(id: number, defined: Defined): Definition {
    const existing = this.#byId.get(id)
    if (existing !== undefined) {
      this.textBytes += textBytes(defined.text) - textBytes(existing.text)
      existing.text = defined.text
      existing.number = defined.number
      this.#changed.add(existing)
      return existing
    }
    const definition = this.#add(id, defined)
    this.#changed.add(definition)
    this.#pages.created()
    return definition
  }

  /** The schedule fired for the tick at `tickMs`, which is its number from now on. `count` ticks have fired so far. */
  fired(definition: Definition, tickMs: number, count: number): void {
    definition.number = tickMs
    definition.fired = count
    this.#changed.add(definition)
  }

  undefine(definition: Definition): void {
    const { id, owner, text } = definition
    this.#byId.delete(id)
    this.#changed.delete(definition)
    this.textBytes -= textBytes(text)
    const owned = this.#byOwner.get(owner)
    owned?.delete(definition)
    if (owned?.size === 0) this.#byOwner.delete(owner)
    this.#pages.removed(PAGE.defined, id, 0)
  }

  /** Called when the queue is removed. */
  ownerRemoved(queueId: number): void {
    for (const definition of this.#byOwner.get(queueId) ?? []) this.undefine(definition)
  }

  #add(id: number, defined: Defined): Definition {
    const definition = new Definition(id, defined)
    this.#byId.set(id, definition)
    this.textBytes += textBytes(defined.text)
    if (id >= this.nextId) this.nextId = id + 1
    if (defined.owner !== NO_OWNER) {
      const owned = this.#byOwner.get(defined.owner)
      if (owned === undefined) this.#byOwner.set(defined.owner, new Set([definition]))
      else owned.add(definition)
    }
    return definition
  }

  // --- pages ---

  /** The definitions whose pages the next checkpoint writes. */
  get changed(): readonly Definition[] {
    return [...this.#changed]
  }

  /** Whether the definition differs from its page. Returns false for a definition that was removed. */
  isChanged(definition: Definition): boolean {
    return this.#changed.has(definition)
  }

  /** The page of the definition, as it is now, was written at `position`. */
  pageWritten(definition: Definition, position: number): void {
    definition.pagePosition = position
    this.#changed.delete(definition)
  }

  /** Restores a definition from its page, which is in the tree. */
  restorePage(id: number, bytes: Uint8Array, start: number, end: number, position: number): void {
    const definition = this.#add(id, {
      kind: bytes[start] as DefinitionKind,
      owner: readU32(bytes, start + 4),
      number: readU64(bytes, start + 8),
      text: readText(bytes, start + PAGE_HEAD_BYTES, end),
    })
    definition.fired = readU32(bytes, start + 16)
    definition.pagePosition = position
  }

  /** Recounts. @throws Error that says what differs */
  audit(): void {
    let bytes = 0
    let owned = 0
    for (const [id, definition] of this.#byId) {
      bytes += textBytes(definition.text)
      if (id >= this.nextId)
        throw new Error(`The definition ${id} exists, but ${this.nextId} is the next id.`)
      if (definition.owner === NO_OWNER) continue
      owned++
      if (this.#byOwner.get(definition.owner)?.has(definition) !== true)
        throw new Error(`The queue ${definition.owner} does not list its definition ${id}.`)
    }
    if (bytes !== this.textBytes)
      throw new Error(`The definitions have ${bytes} bytes of text, but the counter is ${this.textBytes}.`)
    for (const set of this.#byOwner.values()) owned -= set.size
    if (owned !== 0) throw new Error(`The queues list ${-owned} definitions that do not exist.`)
    for (const { id } of this.#changed)
      if (!this.#byId.has(id)) throw new Error(`The definition ${id} has changed, but does not exist.`)
  }
}
