/**
 * A directory of the file system as a `Disk`. Every read and write moves all bytes or rejects: libuv reports an
 * incomplete write to a full disk as a success with a smaller count. Files are readable only by their owner, and names
 * are plain file names, so that nothing outside the directory can be touched.
 */
import fs from 'node:fs'
import { dirname, join, resolve } from 'node:path'
import type { Disk, DiskFile } from './log.js'

const { O_CREAT, O_DIRECTORY, O_DSYNC, O_EXCL, O_NOFOLLOW, O_RDONLY, O_RDWR } = fs.constants

/**
 * On systems other than Linux a sync follows each write, because O_DSYNC on macOS does not flush the drive's own cache.
 */
const HAS_O_DSYNC = process.platform === 'linux'

const NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,126}$/

/** A read or write that moved fewer bytes than requested. */
export class ShortTransferError extends Error {
  readonly code = 'SHORT_TRANSFER'

  constructor(what: 'read' | 'wrote', name: string, position: number, wanted: number, moved: number) {
    super(`${what} ${moved} of ${wanted} bytes at ${position} of ${name}`)
    this.name = 'ShortTransferError'
  }
}

export class NodeDisk implements Disk {
  readonly #path: string
  /** Descriptor of the directory. It stays open, so that a sync after a rename needs no new descriptor. */
  readonly #descriptor: number

  private constructor(path: string, descriptor: number) {
    this.#path = path
    this.#descriptor = descriptor
  }

  /** Opens the directory at `path`. Creates it and its parents if they do not exist. */
  static async at(path: string): Promise<NodeDisk> {
    const whole = resolve(path)
    await makeDirectory(whole)
    return new NodeDisk(whole, await openPath(whole, O_RDONLY | O_DIRECTORY))
  }

  get path(): string {
    return this.#path
  }

  async list(): Promise<string[]> {
    const found = await fs.promises.readdir(this.#path, { withFileTypes: true })
    return found.filter((one) => one.isFile() && NAME.test(one.name)).map((one) => one.name)
  }

  async open(name: string, options: { create?: boolean; durable?: boolean }): Promise<DiskFile> {
    const durable = options.durable ?? false
    const flags =
      O_RDWR |
      O_NOFOLLOW |
      (options.create === true ? O_CREAT | O_EXCL : 0) |
      (durable && HAS_O_DSYNC ? O_DSYNC : 0)
    return NodeFile.of(await openPath(this.#pathOf(name), flags), name, durable && !HAS_O_DSYNC)
  }

  async rename(from: string, to: string): Promise<void> {
    await fs.promises.rename(this.#pathOf(from), this.#pathOf(to))
  }

  async remove(name: string): Promise<void> {
    await fs.promises.unlink(this.#pathOf(name))
  }

  syncDirectory(): Promise<void> {
    return new Promise((done, fail) => {
      fs.fsync(this.#descriptor, (error) => (error ? fail(error) : done()))
    })
  }

  /** The disk must not be used afterwards. */
  close(): Promise<void> {
    return new Promise((done, fail) => {
      fs.close(this.#descriptor, (error) => (error ? fail(error) : done()))
    })
  }

  async space(): Promise<{ freeBytes: number; totalBytes: number }> {
    const { bavail, blocks, bsize } = await fs.promises.statfs(this.#path)
    return { freeBytes: bavail * bsize, totalBytes: blocks * bsize }
  }

  #pathOf(name: string): string {
    if (!NAME.test(name))
      throw new RangeError(`${JSON.stringify(name)} is not a valid file name in a data directory.`)
    return join(this.#path, name)
  }
}

/**
 * Uses a plain descriptor, because Node closes an unreferenced `FileHandle` at garbage collection, but never a
 * descriptor.
 */
class NodeFile implements DiskFile {
  bytes: number
  readonly #descriptor: number
  readonly #name: string
  readonly #syncsWrites: boolean
  #closed = false

  private constructor(descriptor: number, name: string, syncsWrites: boolean, bytes: number) {
    this.#descriptor = descriptor
    this.#name = name
    this.#syncsWrites = syncsWrites
    this.bytes = bytes
  }

  static of(descriptor: number, name: string, syncsWrites: boolean): Promise<NodeFile> {
    return new Promise((done, fail) => {
      fs.fstat(descriptor, (error, stats) => {
        if (error) fs.close(descriptor, () => fail(error))
        else done(new NodeFile(descriptor, name, syncsWrites, stats.size))
      })
    })
  }

  read(position: number, length: number, into?: Uint8Array): Promise<Uint8Array> {
    // The result is not a Buffer, because its `subarray` is called for each message, and that of a Buffer takes about
    // twice as long.
    const bytes = into ?? new Uint8Array(Buffer.allocUnsafeSlow(length).buffer)
    return new Promise((done, fail) => {
      const readOn = (filled: number): void => {
        if (filled === length) return done(bytes)
        fs.read(this.#open(), bytes, filled, length - filled, position + filled, (error, moved) => {
          if (error) fail(error)
          else if (moved === 0) fail(new ShortTransferError('read', this.#name, position, length, filled))
          else readOn(filled + moved)
        })
      }
      readOn(0)
    })
  }

  async write(position: number, bytes: Uint8Array): Promise<void> {
    await new Promise<void>((done, fail) => {
      fs.write(this.#open(), bytes, 0, bytes.length, position, (error, moved) => {
        if (error) fail(error)
        else if (moved === bytes.length) done()
        else fail(new ShortTransferError('wrote', this.#name, position, bytes.length, moved))
      })
    })
    this.bytes = Math.max(this.bytes, position + bytes.length)
    if (this.#syncsWrites) await this.sync()
  }

  sync(): Promise<void> {
    return new Promise((done, fail) => {
      fs.fdatasync(this.#open(), (error) => (error ? fail(error) : done()))
    })
  }

  close(): Promise<void> {
    const descriptor = this.#open()
    this.#closed = true
    return new Promise((done, fail) => {
      fs.close(descriptor, (error) => (error ? fail(error) : done()))
    })
  }

  /**
   * Throws if the file is closed. The system reuses closed descriptors, so a write to one would change another file.
   */
  #open(): number {
    if (this.#closed) throw new Error(`The file ${this.#name} is closed.`)
    return this.#descriptor
  }
}

/**
 * Creates the directory and its parents durably, one after the other. Node's recursive `mkdir` loops forever if the
 * system reports that a directory neither exists nor can be created, as in /proc.
 */
export async function makeDirectory(path: string): Promise<void> {
  const missing: string[] = []
  for (let above = resolve(path); !(await isDirectory(above)); above = dirname(above)) missing.push(above)
  for (const directory of missing.toReversed()) {
    await fs.promises.mkdir(directory, { mode: 0o700 }).catch(async (error: NodeJS.ErrnoException) => {
      if (error.code !== 'EEXIST' || !(await isDirectory(directory))) throw error
    })
    // The name of a directory becomes durable when its parent is synced.
    await syncPath(dirname(directory))
  }
}

// Whether the directory exists. @throws the system's error when a part of the path is not a directory or is not
// accessible
async function isDirectory(path: string): Promise<boolean> {
  try {
    const found = await fs.promises.stat(path)
    if (found.isDirectory()) return true
    throw Object.assign(new Error(`ENOTDIR: not a directory, open '${path}'`), { code: 'ENOTDIR' })
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return false
    throw error
  }
}

function openPath(path: string, flags: number): Promise<number> {
  return new Promise((done, fail) => {
    fs.open(path, flags, 0o600, (error, opened) => (error ? fail(error) : done(opened)))
  })
}

async function syncPath(path: string): Promise<void> {
  const handle = await fs.promises.open(path, O_RDONLY | O_DIRECTORY)
  try {
    await handle.sync()
  } finally {
    await handle.close()
  }
}
