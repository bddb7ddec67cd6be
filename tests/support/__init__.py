"""What tests share: throw-away authorities, origins that remember every byte, a worker in this process."""
