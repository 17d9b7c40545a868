/**
 * A disk in memory that can lose power. It keeps two views of every file and of the directory: what reads return, and
 * what is on stable storage. The difference is a list of writes, of which a power cut keeps any part. The disk is
 * deterministic: the same seed and the same calls give the same images, byte for byte.
 *
 * Sectors of 512 bytes are written whole or not at all. A write to a file that was opened for durable writes is stable
 * when it resolves. Other writes are stable after `sync`; creations, renames and removals are stable after
 * `syncDirectory`.
 */
import type { Disk, DiskFile } from '../../packages/server/src/log/log.js'

export const SECTOR_BYTES = 512
const PAGE_BYTES = 4096

/** Returns a number in [0, 1), uniformly distributed. */
export type Random = () => number

/** A small generator for tests: 32 bits of state, the same numbers on every machine. */
export function randomFrom(seed: number): Random {
  let state = seed >>> 0
  return () => {
    state = (state + 0x9e37_79b9) >>> 0
    let mixed = state
    mixed = Math.imul(mixed ^ (mixed >>> 16), 0x21f0_aaad)
    mixed = Math.imul(mixed ^ (mixed >>> 15), 0x735a_2d97)
    return ((mixed ^ (mixed >>> 15)) >>> 0) / 2 ** 32
  }
}

const KINDS = ['list', 'open', 'read', 'write', 'sync', 'rename', 'remove', 'syncDirectory', 'space'] as const
export type OperationKind = (typeof KINDS)[number]

export interface Operation {
  readonly kind: OperationKind
  /** Number of earlier operations of this kind on this disk. */
  readonly index: number
  /** Name of the file; for a rename, the old name; for the directory, empty. */
  readonly name: string
}

/**
 * A fault in an operation. `error`: the operation rejects; the bytes that a failed write leaves behind are undefined,
 * and no later sync makes them stable. `short`: only this many bytes are written, then the operation rejects. `lie`:
 * the operation resolves, but nothing becomes stable. `slow`: the operation completes after all operations that are not
 * slow.
 */
export interface Fault {
  readonly error?: 'EIO' | 'ENOSPC' | 'EMFILE'
  readonly short?: number
  readonly lie?: boolean
  readonly slow?: boolean
}

export interface SimulatedDiskOptions {
  /** Draws the order in which queued operations complete. */
  readonly random?: Random
  /** `direct`: an operation completes when it is called. `queued`: it completes when `step` draws it. */
  readonly mode?: 'direct' | 'queued'
  /** Maximum total size of all files, in bytes; default: no limit. */
  readonly capacityBytes?: number
  readonly fault?: (operation: Operation) => Fault | undefined
}

/** A page in this list never changes, so that images can share it. Undefined: the page contains zeros. */
type Pages = (Uint8Array | undefined)[]

interface PendingWrite {
  readonly position: number
  bytes: Uint8Array
  /** Whether reads return the bytes of the write. */
  landed: boolean
  /** Whether the write rejected, or the disk lied about it. A sync ignores such a write. */
  unreliable: boolean
  /** Sectors of this write that became stable through another write, which was durable. */
  readonly settled: Set<number>
}

interface Inode {
  cache: Pages
  cacheBytes: number
  stable: Pages
  stableBytes: number
  pending: PendingWrite[]
}

interface NameChange {
  readonly from: string | undefined
  readonly to: string | undefined
  readonly inode: Inode
  landed: boolean
  unreliable: boolean
}

interface Queued {
  readonly slow: boolean
  readonly complete: () => void
}

export class SimulatedDisk implements Disk {
  capacityBytes: number
  fault: ((operation: Operation) => Fault | undefined) | undefined
  readonly #options: SimulatedDiskOptions
  readonly #counts = Object.fromEntries(KINDS.map((kind) => [kind, 0])) as Record<OperationKind, number>
  #names = new Map<string, Inode>()
  #stableNames = new Map<string, Inode>()
  #changes: NameChange[] = []
  #queue: Queued[] = []
  #openFiles = 0

  constructor(options: SimulatedDiskOptions = {}) {
    this.#options = options
    this.capacityBytes = options.capacityBytes ?? Number.POSITIVE_INFINITY
    this.fault = options.fault
  }

  // ------------------------------------------------------------------------------------------------ for tests

  /** Number of operations so far, by kind. */
  get counts(): Readonly<Record<OperationKind, number>> {
    return { ...this.#counts }
  }

  /** Number of operations that wait for `step`. */
  get queued(): number {
    return this.#queue.length
  }

  get openFiles(): number {
    return this.#openFiles
  }

  get usedBytes(): number {
    let used = 0
    for (const { cacheBytes } of this.#names.values()) used += cacheBytes
    return used
  }

  names(): string[] {
    return [...this.#names.keys()].sort()
  }

  /** The bytes that a read of the file returns. */
  bytesOf(name: string): Uint8Array {
    const inode = this.#inode(name)
    return readPages(inode.cache, 0, inode.cacheBytes)
  }

  /** Imitates damage at rest: changes bytes of a file, both cached and stable, without counting a disk operation. */
  damage(name: string, position: number, bytes: Uint8Array): void {
    const inode = this.#inode(name)
    writePages(inode.cache, position, bytes)
    writePages(inode.stable, position, bytes)
  }

  /** Truncates a file to `bytes`, without counting a disk operation. */
  cut(name: string, bytes: number): void {
    const inode = this.#inode(name)
    inode.cacheBytes = Math.min(inode.cacheBytes, bytes)
    inode.stableBytes = Math.min(inode.stableBytes, bytes)
  }

  /** Removes a name, without counting a disk operation. */
  lose(name: string): void {
    this.#names.delete(name)
    this.#stableNames.delete(name)
  }

  // ------------------------------------------------------------------------------------------------------- time

  /** Completes one queued operation, drawn at random. @returns false if none was queued */
  step(): boolean {
    if (this.#queue.length === 0) return false
    const fast = this.#queue.filter(({ slow }) => !slow)
    const candidates = fast.length > 0 ? fast : this.#queue
    const chosen = candidates[Math.floor(this.#random() * candidates.length)]!
    this.#queue.splice(this.#queue.indexOf(chosen), 1)
    chosen.complete()
    return true
  }

  /** Steps until `work` is settled. @throws Error if `work` waits for something other than an operation of this disk */
  async run<T>(work: Promise<T>): Promise<T> {
    let settled = false
    const mark = (): void => {
      settled = true
    }
    work.then(mark, mark)
    for (let idle = 0; ;) {
      await new Promise((resolve) => setImmediate(resolve))
      if (settled) return work
      idle = this.step() ? 0 : idle + 1
      if (idle > 1000) throw new Error('no operation is queued, and the work is not done')
    }
  }

  // ------------------------------------------------------------------------------------------------------- images

  /** The disk of a machine that loses power now: one of the possible images, drawn from `random`. */
  crash(random: Random, options: SimulatedDiskOptions = {}): SimulatedDisk {
    const image = new SimulatedDisk(options)
    const names = new Map(this.#stableNames)
    // Some power cuts lose everything that can be lost, some lose nothing, and most lose a part.
    const keepName = drawShare(random)
    for (const change of this.#changes) if (random() < keepName) applyChange(names, change)
    const copies = new Map<Inode, Inode>()
    for (const [name, inode] of names) {
      let copy = copies.get(inode)
      if (copy === undefined) {
        copy = crashImage(inode, random)
        copies.set(inode, copy)
      }
      image.#names.set(name, copy)
      image.#stableNames.set(name, copy)
    }
    return image
  }

  /**
   * The disk after the process dies but the machine keeps running: it has everything that has landed, and any part of
   * the operations under way. What was not stable remains unstable.
   */
  kill(random: Random, options: SimulatedDiskOptions = {}): SimulatedDisk {
    return this.#copy(random, options)
  }

  /** A copy of the disk, without the operations that are under way. */
  clone(options: SimulatedDiskOptions = this.#options): SimulatedDisk {
    return this.#copy(undefined, options)
  }

  #copy(random: Random | undefined, options: SimulatedDiskOptions): SimulatedDisk {
    const other = new SimulatedDisk(options)
    const copies = new Map<Inode, Inode>()
    const copyOf = (inode: Inode): Inode => {
      let copy = copies.get(inode)
      if (copy === undefined) {
        copy = copyInode(inode, random)
        copies.set(inode, copy)
      }
      return copy
    }
    for (const [name, inode] of this.#names) other.#names.set(name, copyOf(inode))
    for (const [name, inode] of this.#stableNames) other.#stableNames.set(name, copyOf(inode))
    for (const change of this.#changes) {
      const copied = { ...change, inode: copyOf(change.inode) }
      if (!change.landed) {
        if (random === undefined || random() < 0.5) continue
        applyChange(other.#names, copied)
        copied.landed = true
      }
      other.#changes.push(copied)
    }
    return other
  }

  // -------------------------------------------------------------------------------------------------------- Disk

  list(): Promise<string[]> {
    return this.#operate('list', '', () => [...this.#names.keys()])
  }

  open(name: string, options: { create?: boolean; durable?: boolean }): Promise<DiskFile> {
    let change: NameChange | undefined
    if (options.create === true && !this.#names.has(name)) {
      const inode: Inode = { cache: [], cacheBytes: 0, stable: [], stableBytes: 0, pending: [] }
      change = { from: undefined, to: name, inode, landed: false, unreliable: false }
      this.#changes.push(change)
    }
    return this.#operate(
      'open',
      name,
      () => {
        if (options.create === true && change === undefined) throw systemError('EEXIST', name)
        if (change !== undefined) this.#land(change)
        const file = new SimulatedFile(this.#inode(name), name, options.durable ?? false, {
          operate: (kind, work, fail) => this.#operate(kind, name, work, fail),
          grow: (bytes) => this.usedBytes + bytes <= this.capacityBytes,
          closed: () => this.#openFiles--,
        })
        this.#openFiles++
        return file
      },
      () => this.#drop(change),
    )
  }

  rename(from: string, to: string): Promise<void> {
    const inode = this.#names.get(from)
    const change = inode && { from, to, inode, landed: false, unreliable: false }
    if (change !== undefined) this.#changes.push(change)
    return this.#operate(
      'rename',
      from,
      () => {
        if (change === undefined) throw systemError('ENOENT', from)
        this.#land(change)
      },
      () => this.#drop(change),
    )
  }

  remove(name: string): Promise<void> {
    const inode = this.#names.get(name)
    const change = inode && { from: name, to: undefined, inode, landed: false, unreliable: false }
    if (change !== undefined) this.#changes.push(change)
    return this.#operate(
      'remove',
      name,
      () => {
        if (change === undefined) throw systemError('ENOENT', name)
        this.#land(change)
      },
      () => this.#drop(change),
    )
  }

  syncDirectory(): Promise<void> {
    const covered = this.#changes.filter(({ landed }) => landed)
    return this.#operate(
      'syncDirectory',
      '',
      (fault) => {
        if (fault?.lie === true) return
        for (const change of covered) {
          if (!change.unreliable) applyChange(this.#stableNames, change)
        }
        this.#changes = this.#changes.filter((change) => change.unreliable || !covered.includes(change))
      },
      () => {
        // No later sync covers the changes of this failed sync, just as with a file.
        for (const change of covered) change.unreliable = true
      },
    )
  }

  space(): Promise<{ freeBytes: number; totalBytes: number }> {
    return this.#operate('space', '', () => {
      const totalBytes = Math.min(this.capacityBytes, 2 ** 40)
      return { freeBytes: Math.max(0, totalBytes - this.usedBytes), totalBytes }
    })
  }

  #inode(name: string): Inode {
    const inode = this.#names.get(name)
    if (inode === undefined) throw systemError('ENOENT', name)
    return inode
  }

  #land(change: NameChange): void {
    change.landed = true
    applyChange(this.#names, change)
  }

  #drop(change: NameChange | undefined): void {
    this.#changes = this.#changes.filter((other) => other !== change)
  }

  #random(): number {
    return this.#options.random?.() ?? 0
  }

  /** Runs `work` now or when `step` draws the operation; runs `fail` if a fault makes the operation reject. */
  #operate<T>(
    kind: OperationKind,
    name: string,
    work: (fault: Fault | undefined) => T,
    fail?: (fault: Fault) => void,
  ): Promise<T> {
    const index = this.#counts[kind]++
    const fault = this.fault?.({ kind, index, name })
    return new Promise<T>((resolve, reject) => {
      const complete = (): void => {
        try {
          if (fault?.error !== undefined) {
            fail?.(fault)
            throw systemError(fault.error, `${kind} ${name}`)
          }
          resolve(work(fault))
        } catch (error) {
          reject(error)
        }
      }
      if (this.#options.mode === 'queued') this.#queue.push({ slow: fault?.slow ?? false, complete })
      else complete()
    })
  }
}

interface FileHost {
  operate<T>(
    kind: OperationKind,
    work: (fault: Fault | undefined) => T,
    fail?: (fault: Fault) => void,
  ): Promise<T>
  /** Returns whether this many more bytes fit on the disk. */
  grow(bytes: number): boolean
  closed(): void
}

class SimulatedFile implements DiskFile {
  readonly #inode: Inode
  readonly #name: string
  readonly #durable: boolean
  readonly #host: FileHost
  #isOpen = true

  constructor(inode: Inode, name: string, durable: boolean, host: FileHost) {
    this.#inode = inode
    this.#name = name
    this.#durable = durable
    this.#host = host
  }

  get bytes(): number {
    return this.#inode.cacheBytes
  }

  read(position: number, length: number, into?: Uint8Array): Promise<Uint8Array> {
    return this.#host.operate('read', () => {
      this.#checkOpen()
      if (position + length > this.#inode.cacheBytes) {
        throw new Error(`${this.#name} has no ${length} bytes at ${position}`)
      }
      const bytes = readPages(this.#inode.cache, position, length)
      into?.set(bytes)
      return into ?? bytes
    })
  }

  write(position: number, bytes: Uint8Array): Promise<void> {
    this.#checkOpen()
    const inode = this.#inode
    const write: PendingWrite = {
      position,
      bytes: bytes.slice(),
      landed: false,
      unreliable: false,
      settled: new Set(),
    }
    // From the call on, any part of the write can be on the disk.
    inode.pending.push(write)
    return this.#host.operate(
      'write',
      (fault) => {
        this.#checkOpen()
        const growth = position + bytes.length - inode.cacheBytes
        if (growth > 0 && !this.#host.grow(growth)) {
          inode.pending = inode.pending.filter((other) => other !== write)
          throw systemError('ENOSPC', `write ${this.#name}`)
        }
        if (fault?.short !== undefined) {
          // The other bytes never left the process.
          write.bytes = write.bytes.subarray(0, fault.short)
          write.unreliable = true
          land(inode, write)
          throw new Error(`wrote ${fault.short} of ${bytes.length} bytes of ${this.#name}`)
        }
        land(inode, write)
        if (fault?.lie === true) write.unreliable = true
        else if (this.#durable) {
          settle(inode, write)
          inode.pending = inode.pending.filter((other) => other !== write)
        }
      },
      () => {
        // The page cache holds the write and counts it as clean, whatever is on the disk.
        write.unreliable = true
        land(inode, write)
      },
    )
  }

  sync(): Promise<void> {
    this.#checkOpen()
    const inode = this.#inode
    const landed = inode.pending.filter((write) => write.landed)
    const covered = landed.filter(({ unreliable }) => !unreliable)
    // The sectors are read now: a write that lands while the sync is under way can be too late for the sync.
    const sectors = covered.map((write) => ({ write, ...sectorsOf(inode, write) }))
    return this.#host.operate(
      'sync',
      (fault) => {
        this.#checkOpen()
        if (fault?.lie === true) return
        for (const { write, first, bytes } of sectors) {
          for (let at = 0; at < bytes.length; at += SECTOR_BYTES) {
            const sector = first + at / SECTOR_BYTES
            // A durable write with newer bytes completed before this sync.
            if (write.settled.has(sector)) continue
            writePages(inode.stable, sector * SECTOR_BYTES, bytes.subarray(at, at + SECTOR_BYTES))
            for (const other of landed) if (other !== write) other.settled.add(sector)
          }
          inode.stableBytes = Math.max(inode.stableBytes, write.position + write.bytes.length)
        }
        inode.pending = inode.pending.filter((write) => !covered.includes(write))
      },
      () => {
        for (const write of covered) write.unreliable = true
      },
    )
  }

  close(): Promise<void> {
    this.#checkOpen()
    this.#isOpen = false
    this.#host.closed()
    return Promise.resolve()
  }

  #checkOpen(): void {
    if (!this.#isOpen) throw new Error(`${this.#name} is closed`)
  }
}

// ------------------------------------------------------------------------------------------------------ the model

function systemError(code: string, what: string): Error {
  return Object.assign(new Error(`${code}: ${what}`), { code })
}

function applyChange(names: Map<string, Inode>, { from, to, inode }: NameChange): void {
  // This rename cannot have happened, because the file did not get its old name.
  if (from !== undefined && names.get(from) !== inode) return
  if (from !== undefined) names.delete(from)
  if (to !== undefined) names.set(to, inode)
}

function land(inode: Inode, write: PendingWrite): void {
  write.landed = true
  writePages(inode.cache, write.position, write.bytes)
  inode.cacheBytes = Math.max(inode.cacheBytes, write.position + write.bytes.length)
}

/** The whole sectors that a write touches, with the bytes that reads return now. */
function sectorsOf(inode: Inode, { position, bytes }: PendingWrite): { first: number; bytes: Uint8Array } {
  const first = Math.floor(position / SECTOR_BYTES)
  const end = Math.ceil((position + bytes.length) / SECTOR_BYTES)
  return { first, bytes: readPages(inode.cache, first * SECTOR_BYTES, (end - first) * SECTOR_BYTES) }
}

/** Makes the sectors of a durable write stable, with all bytes that have landed in them. */
function settle(inode: Inode, write: PendingWrite): void {
  const { first, bytes } = sectorsOf(inode, write)
  writePages(inode.stable, first * SECTOR_BYTES, bytes)
  inode.stableBytes = Math.max(inode.stableBytes, write.position + write.bytes.length)
  for (const other of inode.pending) {
    if (!other.landed || other === write) continue
    for (let at = 0; at < bytes.length; at += SECTOR_BYTES) other.settled.add(first + at / SECTOR_BYTES)
  }
}

/** Returns 0, 1 or a random share, each with a probability of a third. */
function drawShare(random: Random): number {
  const kind = random()
  if (kind < 1 / 3) return 0
  return kind < 2 / 3 ? 1 : random()
}

function crashImage(inode: Inode, random: Random): Inode {
  const pages = [...inode.stable]
  let bytes = inode.stableBytes
  const kept: { position: number; bytes: Uint8Array }[] = []
  for (const write of inode.pending) {
    const end = write.position + write.bytes.length
    // The size of a file becomes stable independently of its bytes, before or after them.
    if (end > inode.stableBytes && random() < 0.5) bytes = Math.max(bytes, end)
    const share = drawShare(random)
    const isPrefix = random() < 0.3
    const sectors = Math.ceil(end / SECTOR_BYTES) - Math.floor(write.position / SECTOR_BYTES)
    const prefix = Math.floor(random() * (sectors + 1))
    for (let index = 0; index < sectors; index++) {
      const sector = Math.floor(write.position / SECTOR_BYTES) + index
      if (write.settled.has(sector)) continue
      if (isPrefix ? index >= prefix : random() >= share) continue
      const from = Math.max(write.position, sector * SECTOR_BYTES)
      const to = Math.min(end, (sector + 1) * SECTOR_BYTES)
      kept.push({
        position: from,
        bytes: write.bytes.subarray(from - write.position, to - write.position),
      })
    }
  }
  // The bytes by which a file grew are zeros, or what the disk held there before.
  const junkFrom = random() < 0.5 ? inode.stableBytes : bytes
  for (let at = junkFrom; at < bytes; at += SECTOR_BYTES) {
    if (random() < 0.5) writePages(pages, at, junk(random, Math.min(SECTOR_BYTES, bytes - at)))
  }
  for (const part of kept) writePages(pages, part.position, part.bytes)
  return { cache: pages, cacheBytes: bytes, stable: [...pages], stableBytes: bytes, pending: [] }
}

function junk(random: Random, length: number): Uint8Array {
  const bytes = new Uint8Array(length)
  let state = Math.floor(random() * 2 ** 32)
  for (let at = 0; at < length; at++) {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0
    bytes[at] = state >>> 24
  }
  return bytes
}

/** With `random`, none, all or a prefix of each write under way has landed. Without it, none has. */
function copyInode(inode: Inode, random: Random | undefined): Inode {
  const copy: Inode = {
    cache: [...inode.cache],
    cacheBytes: inode.cacheBytes,
    stable: [...inode.stable],
    stableBytes: inode.stableBytes,
    pending: [],
  }
  for (const write of inode.pending) {
    const copied = { ...write, settled: new Set(write.settled) }
    if (!write.landed) {
      if (random === undefined) continue
      const share = drawShare(random)
      if (share === 0) continue
      copied.bytes = write.bytes.subarray(0, Math.ceil(share * write.bytes.length))
      land(copy, copied)
    }
    copy.pending.push(copied)
  }
  return copy
}

function readPages(pages: Pages, position: number, length: number): Uint8Array {
  const out = new Uint8Array(length)
  for (let at = position; at < position + length;) {
    const within = at % PAGE_BYTES
    const count = Math.min(PAGE_BYTES - within, position + length - at)
    const page = pages[Math.floor(at / PAGE_BYTES)]
    if (page !== undefined) out.set(page.subarray(within, within + count), at - position)
    at += count
  }
  return out
}

function writePages(pages: Pages, position: number, bytes: Uint8Array): void {
  for (let at = 0; at < bytes.length;) {
    const index = Math.floor((position + at) / PAGE_BYTES)
    const within = (position + at) % PAGE_BYTES
    const count = Math.min(PAGE_BYTES - within, bytes.length - at)
    const page = pages[index]?.slice() ?? new Uint8Array(PAGE_BYTES)
    page.set(bytes.subarray(at, at + count), within)
    // A hole in the middle of the array would make the array slow.
    while (pages.length < index) pages.push(undefined)
    pages[index] = page
    at += count
  }
}
